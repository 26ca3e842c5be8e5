"""`--sgd apex`: the optimizers' update by FusedSGD of NVIDIA's apex, instead of our kernel."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.step.sgd import FlatSGD

INSTALL = (
    "pip install -v --no-build-isolation 'apex @ git+https://github.com/NVIDIA/apex' with "
    "APEX_CPP_EXT=1 APEX_CUDA_EXT=1 set; the package of that name on PyPI is another one"
)


def why_no_apex() -> str | None:
    """Why NVIDIA's apex cannot be used, with what to do; None where it can."""
    if importlib.util.find_spec("apex") is None:
        return f"apex is not installed: {INSTALL}"
    try:
        known = importlib.util.find_spec("apex.multi_tensor_apply") is not None
    except ImportError:
        known = False
    if not known:
        return f"the package apex that is installed is not NVIDIA's: pip uninstall apex, {INSTALL}"
    if importlib.util.find_spec("amp_C") is None:
        return f"apex is installed without its CUDA extensions: {INSTALL}"
    return None


class ApexSGD(FlatSGD):
    """FlatSGD whose update FusedSGD computes; equal to rounding.

    Learning rate and momentum are numbers of the host, so a step cannot be captured as a graph, and
    float16's loss scale is not read.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        """Raises InputError where apex cannot be used."""
        reason = why_no_apex()
        if reason is not None:
            raise InputError(f"--sgd apex: {reason}")
        super().__init__(model, **settings)
        self.rate, self.friction = settings["lr"], settings["momentum"]
        self.stretches: tuple[tuple[slice, float], ...] = ()
        self.fused: Any = None

    def set_lr(self, lr: float) -> None:
        super().set_lr(lr)
        self.rate = lr

    def set_momentum(self, momentum: float) -> None:
        super().set_momentum(momentum)
        self.friction = momentum

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        runs = tuple(self._runs())
        if runs != self.stretches:
            self.stretches, self.fused = runs, self._fused(runs)
        for group in self.fused.param_groups:
            group["lr"], group["momentum"] = self.rate, self.friction
        self.fused.step()
        if self.ema is not None:
            decay, share = self.ema_shares
            self.ema.mul_(decay).add_(self.flat * share)

    def _fused(self, runs: tuple[tuple[slice, float], ...]) -> Any:
        """FusedSGD on views of our buffers, so that checkpoints and averages are as ever."""
        from apex.optimizers import FusedSGD  # type: ignore[import-not-found]

        parts = [self._part(run) for run, _ in runs]
        fused = FusedSGD(
            [
                {"params": [part], "weight_decay": decay}
                for part, (_, decay) in zip(parts, runs, strict=True)
            ],
            lr=self.rate,
            momentum=self.friction,
            nesterov=self.nesterov,
        )
        for part, (run, _) in zip(parts, runs, strict=True):
            fused.state[part]["momentum_buffer"] = self.momentum_buffer[run]
        return fused

    def _part(self, run: slice) -> Tensor:
        part = nn.Parameter(self.flat[run])
        assert self.flat.grad is not None
        part.grad = self.flat.grad[run]
        return part
