"""What an attacker may do to an image: a norm ball of radius epsilon inside the box [0, 1].

A norm is a class with three hooks: where an attack starts, one ascent step inside the ball, and
the distance. All lengths are pixels in [0, 1]; nothing here knows of networks or losses.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastcat.errors import InputError, nearest
from fastcat.kernels.pgd_update import pgd_update_reference

Start = Literal["zero", "uniform", "gaussian"]

# TRADES and MART leave x by this much noise, in pixels of [0, 1], before the first gradient
GAUSSIAN_START_STD = 0.001


class Linf:
    """max |x_adv - x| <= eps."""

    @staticmethod
    def start(x: Tensor, kind: Start, noise: Tensor, eps: float) -> Tensor:
        if kind == "zero":
            return x.clone()
        if kind == "uniform":
            return (x + eps * noise).clamp(0, 1)
        # unclamped, as published: the first step's projection clamps it
        return x + GAUSSIAN_START_STD * noise

    @staticmethod
    def ascend(x_adv: Tensor, x: Tensor, grad: Tensor, eps: float, step_size: float) -> Tensor:
        return pgd_update_reference(x_adv, x, grad, eps, step_size)

    @staticmethod
    def distance(x: Tensor, x_adv: Tensor) -> Tensor:
        return (x_adv - x).abs().flatten(1).amax(1)


NORMS = {"linf": Linf}


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """An l-infinity PGD attacker.

    eps: radius in pixels of [0, 1]; step_size: of one PGD step, a quarter of eps by default;
    steps: number of gradients; restarts: independent starts, of which the worst counts.
    Raises InputError for values that mean nothing.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise InputError(f"unknown norm {self.norm!r}: {nearest(self.norm, NORMS)}")
        if not 0 < self.eps <= 1:
            raise InputError(
                f"eps is {self.eps:g}, expected pixels in (0, 1]: type for example 8/255"
            )
        if self.step_size is not None and not 0 < self.step_size <= 1:
            raise InputError(
                f"step size is {self.step_size:g}, expected pixels in (0, 1]: "
                "type for example 2/255"
            )
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}, expected at least 1: type for example 10")
        if self.restarts < 1:
            raise InputError(f"restarts is {self.restarts}, expected at least 1")

    @property
    def step(self) -> float:
        """The step size in force."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def start(self, x: Tensor, kind: Start, noise: Tensor) -> Tensor:
        """The first iterate; noise [B, C, H, W] is a draw of `draw_noise` for this kind."""
        return NORMS[self.norm].start(x, kind, noise, self.eps)

    def ascend(self, x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
        """One step of all views at once: x_adv, grad [K, B, C, H, W], x [B, C, H, W]."""
        return NORMS[self.norm].ascend(x_adv, x, grad, self.eps, self.step)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """How far each image [B] has moved, in the threat model's norm."""
        return NORMS[self.norm].distance(x, x_adv)


def draw_noise(kind: Start, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Raw start noise like x: uniform in [-1, 1), standard normal, or zero."""
    noise = torch.empty_like(x)
    if kind == "uniform":
        return noise.uniform_(-1, 1, generator=generator)
    if kind == "gaussian":
        return noise.normal_(generator=generator)
    return noise.zero_()
