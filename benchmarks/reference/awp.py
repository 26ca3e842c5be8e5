"""Adversarial weight perturbation, as the code of Wu et al. (2020, arXiv 2004.05884) runs it.

  v = gamma ||w|| d / ||d||   for each weight of more than one dimension

d is what one SGD step of -loss changes in a second network, the proxy, which gets a copy of
weights and buffers in every step. w + v takes the step of the optimizer, and v is subtracted from
what comes out. AT-AWP has the attack and the log of at.py, TRADES-AWP the attack of trades.py; it
forwards the adversarial view, then the clean one twice, in the proxy and again at w + v. With
S steps: S + 4 forwards and S + 2 backwards, those of weights included, and 2S + 6, S + 6 and 6.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .at import AtLoop
from .plain import PlainLoop
from .trades import trades_loss

SMALL = 1e-20


class AwpLoop(PlainLoop):
    """As PlainLoop, for one peer. gamma: length of v relative to the weights."""

    proxy_lr: float

    def __init__(
        self, models: Sequence[nn.Module], methods: Sequence[str], *, gamma: float, **settings: Any
    ) -> None:
        super().__init__(models, methods, **settings)
        self.gamma = gamma
        self.proxy = copy.deepcopy(self.models[0])
        self.proxy_optimizer = torch.optim.SGD(self.proxy.parameters(), lr=self.proxy_lr)

    def update(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        difference = self.difference(views, y)
        self.add(difference, self.gamma)
        result = super().update(views, y)
        self.add(difference, -self.gamma)
        return result

    def difference(self, views: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """v / gamma by name of parameter."""
        model = self.models[0]
        self.proxy.load_state_dict(model.state_dict())
        self.proxy.train()
        self.models = [self.proxy]
        loss = -self.climbed(self.only_loss, views, y)
        self.models = [model]
        self.proxy_optimizer.zero_grad()
        loss.backward()
        self.proxy_optimizer.step()

        difference, moved = {}, self.proxy.state_dict()
        for name, w in model.state_dict().items():
            if w.dim() > 1 and "weight" in name:
                d = moved[name] - w
                difference[name] = w.norm() / (d.norm() + SMALL) * d
        return difference

    def only_loss(self, views: dict[str, Tensor], y: Tensor) -> Tensor:
        (loss,), _ = self.losses(views, y)
        return loss

    @torch.no_grad()
    def add(self, difference: dict[str, Tensor], factor: float) -> None:
        for name, w in self.models[0].named_parameters():
            if name in difference:
                w.add_(factor * difference[name])


class AtAwpLoop(AwpLoop, AtLoop):
    proxy_lr = 0.01


def trades_awp_loss(y: Tensor, adv: Tensor, again: Tensor, clean: Tensor) -> Tensor:
    return trades_loss(y, clean, adv, again)


class TradesAwpLoop(AwpLoop):
    OBJECTIVES: ClassVar = {"trades": (trades_awp_loss, ("adv", "clean", "clean"))}
    proxy_lr = 0.1
