"""Adversarial training: L = CE(z(x_adv), y), the attack climbs the same loss.

Source: Madry et al. 2018 (arXiv 1706.06083), Eq. 2.1. The attack normalises by the running
statistics (Pang et al. 2021). The public code of Rice et al. 2020 (arXiv 2002.11569), and so that
of AWP, attacks in train mode, forwards the last iterate for its loss, and after the update the
clean images for the accuracy that it logs; all of this moves the running statistics:
bn=moving, log_forward=true. bn=train leaves them alone. smoothing is that of the labels in the
loss; the attack climbs CE with the labels as they are.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce


def at(*, smoothing: float = 0.0) -> Objective:
    require(0 <= smoothing < 1, f"at:smoothing={smoothing:g}", "a share in [0, 1)")

    return Objective(
        views=("adv",),
        inner=PGD(loss="ce", start="uniform", last=True),
        outer=ce("adv", smoothing),
    )
