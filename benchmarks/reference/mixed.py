"""A plain loop with what a careful user switches on in a few lines; the same mathematics and F.

- autocast to bf16, or to fp16 with a GradScaler on GPUs that have no bf16, around each forward and
  its loss, so that forwards of one loss share one low-precision copy of the weights. Images,
  weights, BatchNorm's statistics and losses stay float32;
- models and images in channels_last;
- cudnn.benchmark, which is on inside `step` and `evaluate` and otherwise as it was found.

The inefficiencies that plain.py lists are all still here: to remove them is to rewrite the loop.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .plain import PlainLoop

FP16_ATTACK_SCALE = 256.0


def half_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware has it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class MixedLoop(PlainLoop):
    """As PlainLoop, or as the loop that `mixed` puts in its place.

    The models' weights become channels_last in place and stay float32.
    """

    def __init__(
        self, models: Sequence[nn.Module], methods: Sequence[str], **settings: Any
    ) -> None:
        models = [model.to(memory_format=torch.channels_last) for model in models]
        super().__init__(models, methods, **settings)
        self.device = next(models[0].parameters()).device
        self.dtype = half_dtype(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """A new one each time: one that is entered twice stays on."""
        return torch.autocast(self.device.type, self.dtype)

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        with cudnn_benchmark():
            return super().step(x.contiguous(memory_format=torch.channels_last), y)

    def evaluate(self, x: Tensor, y: Tensor, steps: int = 20) -> list[tuple[float, float]]:
        with cudnn_benchmark():
            return super().evaluate(x.contiguous(memory_format=torch.channels_last), y, steps)

    def forward(self, k: int, x: Tensor) -> Tensor:
        with self.autocast():
            return super().forward(k, x).float()

    def climbed(self, loss: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The loss of an attack, scaled so that the gradient, of which only the sign is used, does
        not underflow in fp16.

        Not by the GradScaler's scale: that is meant to overflow at times, and an image of NaN would
        stay in BatchNorm's statistics.
        """
        with self.autocast():
            climbed = super().climbed(loss, *arguments)
        return FP16_ATTACK_SCALE * climbed if self.scaler.is_enabled() else climbed

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        with self.autocast():
            return super().losses(views, y)

    def descend(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()


def mixed(loop: type[PlainLoop]) -> type[PlainLoop]:
    """The loop of a method, in mixed precision."""
    return type(f"Mixed{loop.__name__}", (MixedLoop, loop), {})
