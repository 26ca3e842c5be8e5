"""No attack."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastcat.attacks.pgd import Network
from fastcat.attacks.threat import ThreatModel
from fastcat.evaluation.attack import NoiseAttack


@dataclass(frozen=True)
class Clean(NoiseAttack):
    """The images themselves, once."""

    has_threat = False

    def under(self, threat: ThreatModel) -> ThreatModel:
        return replace(threat, restarts=1)

    def noise(self, x: Tensor, threat: ThreatModel, generator: torch.Generator | None) -> Tensor:
        return torch.zeros_like(x)

    def find(
        self, network: Network, x: Tensor, y: Tensor, threat: ThreatModel, noise: Tensor
    ) -> Tensor:
        return x


def clean() -> NoiseAttack:
    """No attack."""
    return Clean()
