"""The arithmetic of a run: fp32, tf32, bf16 or fp16, by autocast."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fastcat.choices import PRECISIONS
from fastcat.errors import InputError, nearest

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, dtype) for name, dtype in PRECISIONS.items()}


@dataclass(frozen=True)
class Precision:
    """The arithmetic of the networks; weights, images, losses and updates stay float32.

    name: a name of PRECISIONS
    device_type: "cpu" or "cuda"
    """

    name: str
    device_type: str

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions and matrix products compute in."""
        return DTYPES[self.name]

    @property
    def attack_scale(self) -> float:
        """A factor of the climbed loss that keeps float16 gradients from underflowing."""
        return 256.0 if self.name == "fp16" else 1.0

    def autocast(self) -> AbstractContextManager:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=enabled)

    def grad_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def make_precision(name: str, device: torch.device) -> Precision:
    """The precision called `name`; "auto" is bf16 on a GPU that has it, else fp32.

    It sets torch's process-wide switches for TF32. Raises InputError for an unknown name.
    """
    if name == "auto":
        name = (
            "bf16"
            if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            else "fp32"
        )
    if name not in DTYPES:
        raise InputError(f"unknown precision {name!r}: {nearest(name, [*DTYPES, 'auto'])}")
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    return Precision(name, device.type)
