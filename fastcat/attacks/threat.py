"""What an attacker may do to an image: a norm ball of radius epsilon inside the box [0, 1].

Where an attack starts, one ascent step inside the ball, and the distance. All lengths are in
pixels of [0, 1]; nothing here knows of networks or losses.
torch is imported where something is computed, so that options can name norms without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from fastcat.errors import InputError, check_number, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Start = Literal["zero", "uniform", "gaussian", "unclipped"]

# TRADES and MART leave x by this much noise, in pixels of [0, 1], before the first gradient
GAUSSIAN_START_STD = 0.001


def _linf_ball(x: Tensor, generator: torch.Generator | None) -> Tensor:
    import torch

    return torch.empty_like(x).uniform_(-1, 1, generator=generator)


def _l2_ball(x: Tensor, generator: torch.Generator | None) -> Tensor:
    import torch

    normal = torch.empty_like(x).normal_(generator=generator)
    return _on_radius(normal, 2, x[0].numel(), generator)


def _l2_radius(x: Tensor, generator: torch.Generator | None) -> Tensor:
    import torch

    return _on_radius(torch.empty_like(x).normal_(generator=generator), 2, 1, generator)


def _l1_ball(x: Tensor, generator: torch.Generator | None) -> Tensor:
    import torch

    size = torch.empty_like(x).exponential_(generator=generator)
    sign = torch.empty_like(x).uniform_(-1, 1, generator=generator).sign()
    return _on_radius(size * sign, 1, x[0].numel(), generator)


def _on_radius(
    direction: Tensor, p: int, dimensions: int, generator: torch.Generator | None
) -> Tensor:
    """Points of the unit l_p ball on the given directions.

    dimensions: that of the ball in which they are uniform draws; with 1 they lie at any distance
        alike
    """
    import torch

    norm = direction.flatten(1).norm(p, dim=1)
    radius = torch.empty_like(norm).uniform_(0, 1, generator=generator)
    factor = radius ** (1 / dimensions) / norm
    return direction * factor[:, None, None, None]


@dataclass(frozen=True)
class Norm:
    """A norm of the ball around an image.

    order: of the l_p norm
    unit_ball: a uniform draw from its unit ball, like x in shape
    """

    order: float
    unit_ball: Callable[[Tensor, torch.Generator | None], Tensor]


NORMS = {
    "linf": Norm(math.inf, _linf_ball),
    "l2": Norm(2, _l2_ball),
    "l1": Norm(1, _l1_ball),
}

# whose public code the attack in l2 follows, where that differs from what is usual
CODES = {
    "rice": "a uniform start lies at any distance up to eps alike (Rice et al. 2020)",
    "trades": "a step is clipped to [0, 1] first, then scaled to eps (Zhang et al. 2019)",
}

# coordinates that one step of l1 ascent moves; Maini et al. 2020 draw 5 to 20
L1_SPARSITY = 20


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """A PGD attacker inside a norm ball.

    norm: "linf", "l2" or "l1"
    eps: radius in that norm, of pixels in [0, 1]; for linf in (0, 1]
    step_size: length of one step in that norm. None: a quarter of eps
    steps: number of gradients
    restarts: independent starts, of which the worst counts
    code: for l2 alone, a name of CODES, whose code it follows. None: the start is uniform in the
        ball, and a step is projected to the ball and then clipped to [0, 1]

    Raises InputError for values that mean nothing.
    """

    norm: str = "linf"
    eps: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    restarts: int = 1
    code: str | None = None

    def __post_init__(self) -> None:
        if self.norm not in [*NORMS]:
            raise InputError(f"unknown norm {self.norm!r}: {nearest(self.norm, NORMS)}")
        self._check_length("eps", self.eps, "8/255")
        if self.step_size is not None:
            self._check_length("step size", self.step_size, "2/255")
        check_number("steps", self.steps, "10", whole=True)
        check_number("restarts", self.restarts, "1", whole=True)
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}, expected at least 1: type for example 10")
        if self.restarts < 1:
            raise InputError(f"restarts is {self.restarts}, expected at least 1")
        if self.code not in (None, *CODES):
            raise InputError(f"unknown code {self.code!r}: {nearest(self.code, CODES)}")
        if self.code is not None and self.norm != "l2":
            raise InputError(f"code={self.code} is for l2, not for {self.norm}: leave it out")

    def _check_length(self, name: str, value: float, example: str) -> None:
        check_number(name, value, f"{example}, without quotes")
        if self.norm == "linf" and 1 < value <= 255:
            raise InputError(
                f"{name} is {value:g}, more than the whole range [0, 1] of a pixel: "
                f"type {value:g}/255"
            )
        if not 0 < value < math.inf or (self.norm == "linf" and value > 1):
            of = "pixels in (0, 1]" if self.norm == "linf" else "more than 0"
            raise InputError(f"{name} is {value:g}, expected {of}: type for example {example}")

    @property
    def step(self) -> float:
        """The step size in force."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def draw_noise(self, kind: Start, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Raw start noise like x: uniform in the norm's unit ball, standard normal, or zero.

        generator: on x's device, None for torch's own. Raises InputError for another one.
        """
        import torch

        _check_start(kind)
        if not (generator is None or isinstance(generator, torch.Generator)):
            raise InputError(
                f"the generator is {generator!r:.40}, expected a torch.Generator: "
                "type torch.Generator().manual_seed(0)"
            )
        if generator is not None and generator.device.type != x.device.type:
            raise InputError(
                f"the generator is on {generator.device}, the images are on {x.device}: "
                f"type torch.Generator({x.device.type!r})"
            )
        if kind in ("uniform", "unclipped"):
            if self.code == "rice":
                return _l2_radius(x, generator)
            return NORMS[self.norm].unit_ball(x, generator)
        if kind == "gaussian":
            return torch.empty_like(x).normal_(generator=generator)
        return torch.zeros_like(x)

    def start(self, x: Tensor, kind: Start, noise: Tensor) -> Tensor:
        """The first iterate, like x.

        kind: where it lies
        noise: [B, C, H, W], a draw of `draw_noise` for this kind

        Only "uniform" is clipped to [0, 1]; the others are clipped by the first step's projection.
        """
        _check_start(kind)
        if kind == "uniform":
            return (x + self.eps * noise).clamp(0, 1)
        if kind == "unclipped":
            return x + self.eps * noise
        return x + GAUSSIAN_START_STD * noise if kind == "gaussian" else x

    def ascend(self, x_adv: Tensor, x: Tensor, grad: Tensor, low: Tensor | None = None) -> None:
        """Move x_adv one step along the gradient, in place, and back into the ball and [0, 1].

        x_adv, grad: [K, B, C, H, W]
        x: the clean images [B, C, H, W]
        low: gets the new x_adv in another dtype
        """
        from fastcat.kernels.pgd_update import pgd_update

        box_first = self.code == "trades"
        pgd_update(x_adv, low, x, grad, self.norm, self.eps, self.step, L1_SPARSITY, box_first)

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """How far each image [B] of x [B, C, H, W] has moved, in the threat model's norm.

        Raises InputError for images of two shapes.
        """
        if x.dim() != 4 or x.shape != x_adv.shape:
            raise InputError(
                f"images have shapes {tuple(x.shape)} and {tuple(x_adv.shape)}, expected "
                "[B, C, H, W] twice"
            )
        return (x_adv - x).flatten(1).norm(NORMS[self.norm].order, dim=1)


def _check_start(kind: Any) -> None:
    if kind not in get_args(Start):
        raise InputError(f"unknown start {kind!r}: {nearest(kind, get_args(Start))}")


def check_threat(threat: Any) -> None:
    """Raise InputError for what is no ThreatModel."""
    if not isinstance(threat, ThreatModel):
        raise InputError(
            f"the threat is {threat!r:.40}, expected a ThreatModel: "
            "fastcat.ThreatModel(eps=8 / 255, step_size=2 / 255, steps=10)"
        )


# how a peer meets several threat models at once
WAYS = {
    "avg": "a view for each, whose losses are averaged",
    "max": "of each image the one view of largest inner loss (Tramer & Boneh 2019)",
    "msd": "each step the steepest of theirs (multi steepest descent, Maini et al. 2020)",
}


# ways as the public code of Maini et al. 2020 runs them
OFFICIAL = {f"{way}-official": way for way in WAYS}


@dataclass(frozen=True)
class Threats:
    """How a peer is attacked.

    models: one threat model, or several of distinct norms and as many restarts
    way: how several are met, a name of WAYS
    official: whether as the public code of Maini et al. does, see `multi_norm_official`
    """

    models: tuple[ThreatModel, ...]
    way: str | None = None
    official: bool = False

    @property
    def name(self) -> str:
        """As `threat=NAME` has it."""
        name = self.way or self.models[0].norm
        return f"{name}-official" if self.official else name

    @property
    def turns(self) -> int:
        """Updates of the weights on each batch."""
        return len(self.models) if self.official and self.way == "avg" else 1

    @property
    def norms(self) -> tuple[str, ...]:
        return tuple(model.norm for model in self.models)


# of who is never attacked
NO_THREAT = Threats(())
