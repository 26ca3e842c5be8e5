"""Projected gradient descent, its last iterate (Madry et al. 2018, arXiv 1706.06083).

    x_0 = x + eps u,   x_{t+1} = project(x_t + step_size direction(grad loss(f(x_t), y)))

direction and projection are those of the threat model's norm.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcat.attacks.pgd import PGD, Network, attack_all
from fastcat.attacks.threat import ThreatModel
from fastcat.errors import InputError, check_number
from fastcat.evaluation.attack import NoiseAttack


@dataclass(frozen=True)
class PGDAttack(NoiseAttack):
    """Gradient steps on a loss of the labels.

    settings: the loss, and where the attack starts.
    steps: number of gradients.
    restarts: random starts; None: the threat model's.
    """

    settings: PGD
    steps: int
    restarts: int | None = None

    def under(self, threat: ThreatModel) -> ThreatModel:
        return replace(threat, steps=self.steps, restarts=self.restarts or threat.restarts)

    def noise(self, x: Tensor, threat: ThreatModel, generator: torch.Generator | None) -> Tensor:
        return threat.draw_noise(self.settings.start, x, generator)

    def find(
        self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, noise: Tensor
    ) -> Tensor:
        return attack_all([network], [self.settings], x, y, threat, noise[None, None])[0]


def pgd(
    steps: int, loss: str = "ce", start: str = "uniform", restarts: int | None = None
) -> NoiseAttack:
    """PGD's last iterate on ce, margin, dlr, kl or boosted_ce (Madry et al. 2018)."""
    for name, value in {"steps": steps, "restarts": restarts}.items():
        if value is not None:
            check_number(name, value, "20", whole=True)
            if value < 1:
                raise InputError(f"{name} is {value}, expected at least 1: type for example 20")
    settings = PGD(loss=loss, start=start)  # type: ignore[arg-type]
    return PGDAttack(settings, steps, restarts)
