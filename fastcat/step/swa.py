"""Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407), as in Chen et al. 2021.

After n epochs that count, the average of the weights at their ends is

    a_n = a_{n-1} + (w_n - a_{n-1}) / n,

and BatchNorm's statistics under a_n are means over batches of clean training images, by the images
of each batch, as in the code of both. Chen et al. count epochs from 0: their epoch 55 is the 56th.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcat.attacks.modes import attack_mode


def recompute_statistics(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Set BatchNorm's running statistics to their mean over batches of images [B, C, H, W].

    Each batch counts by its images. Other layers are in eval mode, so that nothing is drawn.
    """
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad(), attack_mode(model, "eval"):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            seen = 0
            for x in images:
                seen += len(x)
                for norm in norms:
                    norm.momentum = len(x) / seen
                model(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


class WeightAverage:
    """The average of a model's weights over `count` epochs, with BatchNorm statistics of its own.

    flat: the weights as one buffer, of which the model's parameters are views.
    """

    def __init__(self, model: nn.Module, flat: Tensor) -> None:
        self.model = model
        self.live = [flat, *(buffer for norm in _norms(model) for buffer in norm.buffers())]
        self.average = [torch.zeros_like(tensor) for tensor in self.live]
        self.count = 0

    @torch.no_grad()
    def add(self, images: Iterable[Tensor]) -> None:
        """Take in the present weights.

        images: batches [B, C, H, W] for BatchNorm's statistics
        """
        self.count += 1
        self.average[0].lerp_(self.live[0], 1 / self.count)
        with self.in_place():
            recompute_statistics(self.model, images)
            for kept, statistic in zip(self.average[1:], self.live[1:], strict=True):
                kept.copy_(statistic)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the average stands in the model, which is afterwards as before, to the bit."""
        before = [tensor.clone() for tensor in self.live]
        _copy(self.average, self.live)
        try:
            yield
        finally:
            _copy(before, self.live)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        _copy(state["average"], self.average)


@torch.no_grad()
def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
