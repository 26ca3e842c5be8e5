"""The reference loops with their start noise given, and what passes through them kept."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.benchmarks.reference.plain import PlainLoop

ATTACK: dict[str, Any] = {"eps": 8 / 255, "step_size": 3 / 255, "steps": 3}
ALPHA = 0.3


class Watched:
    """Takes its start noise, `[B, C, H, W]` a peer, and keeps what passes through.

    A second start of a peer is the noise of the other images in turn, as in the oracle.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.noise: list[Tensor] = []
        self.given_views: dict[str, Tensor] | None = None
        self.seen: list[tuple[int, bool, Tensor, Tensor]] = []

    def next_noise(self, k: int) -> Tensor:
        noise, self.noise[k] = self.noise[k], self.noise[k].flip(0)
        return noise

    def gaussian_start(self, k: int, x: Tensor) -> Tensor:
        return (0.001 * self.next_noise(k)).to(x)

    def uniform_start(self, k: int, x: Tensor) -> Tensor:
        return (self.eps * self.next_noise(k)).to(x)

    def losses(self, views: dict[str, Tensor], y: Tensor) -> Any:
        self.views = self.given_views or views
        return super().losses(self.views, y)

    def forward(self, k: int, x: Tensor) -> Tensor:
        z = super().forward(k, x)
        self.seen.append((k, self.models[k].training, x, z))
        return z


def watched(loop: type[PlainLoop]) -> Any:
    return type(f"Watched{loop.__name__}", (Watched, loop), {})


def start_noise(methods: Sequence[str], x: Tensor, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(x).uniform_(-1, 1, generator=generator)
        if method in ("at", "alp", "natural", "fast", "pgd-cw", "ard", "iad")
        else torch.empty_like(x).normal_(generator=generator)
        for method in methods
    ]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    assert actual.shape == expected.shape, what
    error = (actual.detach().double() - expected).abs().max().item()
    assert error <= tolerance * expected.abs().max().item(), f"{what} is off by {error:.3g}"


SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3}


TOLERANCE = 1e-11


def published_statistics(before: nn.Module, net: nn.Module, views: Sequence[Tensor]) -> None:
    """Gives net the buffers that `before` has after train-mode forwards of the views."""
    twin = copy.deepcopy(before).train()
    with torch.no_grad():
        for view in views:
            twin(view)
    net.load_state_dict(dict(twin.named_buffers()), strict=False)
