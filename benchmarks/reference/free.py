"""Free adversarial training as the code of Wong et al. runs it, one replay of a batch.

train_free.py of fast_adversarial (2020, arXiv 2001.03994), after Shafahi et al. 2019: delta gets
its gradient from the backward pass that trains, so a step is 1 forward, 1 backward and 1 of
weights, and nothing is wasted.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .fast import in_box
from .plain import PlainLoop, at_loss


class FreeLoop(PlainLoop):
    """As PlainLoop, for one peer of free. delta: carried along, None before the first step."""

    OBJECTIVES: ClassVar = {"free": (at_loss, ("adv",))}

    def __init__(
        self, models: Sequence[nn.Module], methods: Sequence[str], **settings: Any
    ) -> None:
        super().__init__(models, methods, **settings)
        self.delta: Tensor | None = None

    def carried(self, x: Tensor) -> Tensor:
        if self.delta is None:
            self.delta = torch.zeros_like(x)
        return self.delta[: len(x)]

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"clean": x, "adv0": (x + self.carried(x)).requires_grad_()}

    def update(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        result = super().update(views, y)
        x, grad = views["clean"], views["adv0"].grad
        assert grad is not None
        delta = self.carried(x)
        delta.copy_(in_box((delta + self.eps * grad.sign()).clamp(-self.eps, self.eps), x))
        return result
