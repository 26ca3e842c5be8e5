"""One step of length eps from the image itself, on the cross-entropy (Goodfellow et al. 2015)."""

from dataclasses import dataclass, replace

from fastcat.attacks.pgd import PGD
from fastcat.attacks.threat import ThreatModel
from fastcat.evaluation.attack import NoiseAttack
from fastcat.evaluation.attacks.pgd import PGDAttack


@dataclass(frozen=True)
class FGSM(PGDAttack):
    """PGD with a single step of the whole radius."""

    def under(self, threat: ThreatModel) -> ThreatModel:
        return replace(super().under(threat), step_size=threat.eps)


def fgsm() -> NoiseAttack:
    """One step of length eps from the image itself, cross-entropy (Goodfellow et al. 2015)."""
    return FGSM(PGD(loss="ce", start="zero"), steps=1, restarts=1)
