"""Mutual adversarial training: peers taught, on their own adversaries, on each other's clean view.

  (1 - alpha) sum_k L_k + alpha / (K - 1) sum_k sum_{j != k} KL_batchmean(sg[p_j(x)] || p_k(v_k))

Source: Liu et al., 2021, arXiv 2112.05005, whose L_k is MART's boosted cross-entropy; the attack
climbs it too. There is no public code. Written as MART's is, after which the paper is modelled
(Gaussian start, gradients to the images alone), and as train_cat.py is between peers, but without
its forward for the log. A boosted peer has S + 2 forwards, the last one of the clean images with a
graph that is then cut off, S + 1 backwards and 1 of weights: nothing but that graph is wasted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .plain import PlainLoop


class MatLoop(PlainLoop):
    """As PlainLoop, of several peers; alpha is the weight of what they teach each other."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        methods: Sequence[str],
        *,
        alpha: float = 0.6,
        **settings: Any,
    ) -> None:
        super().__init__(models, methods, alpha=alpha, **settings)
        self.read_view = ["clean" for _ in models]

    def logs_accuracy(self) -> bool:
        return False

    def total(self, losses: list[Tensor], guidance: Tensor) -> Tensor:
        return (1 - self.alpha) * torch.stack(losses).sum() + self.alpha * guidance

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        losses, guidance = super().losses(views, y)
        assert guidance is not None
        return losses, guidance / (len(losses) - 1)
