"""PGD and CW on one network, whose predictions on both adversaries teach each other.

    L = alpha [CE(z(x_pgd), y) + CE(z(x_cw), y)]
        + (1 - alpha) [KL(sg p(x_cw) || p(x_pgd)) + KL(sg p(x_pgd) || p(x_cw))],  sg: no gradient

x_pgd climbs CE and x_cw the margin of Carlini & Wagner. It is CAT's ablation with PGD and CW on one
network (Liu et al. 2023, arXiv 2303.14922), of which the paper gives no formula and the public code
has nothing: this is CAT's loss with the two views in the place of the two networks.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce, kl


def pgd_cw(*, alpha: float = 0.05) -> Objective:
    require(0 <= alpha <= 1, f"pgd_cw:alpha={alpha:g}", "a weight in [0, 1]")
    guidance = kl("cw", "adv", constant="teacher") + kl("adv", "cw", constant="teacher")

    return Objective(
        views=("adv", "cw"),
        inner={"adv": PGD(loss="ce"), "cw": PGD(loss="margin")},
        outer=alpha * (ce("adv") + ce("cw")) + (1 - alpha) * guidance,
    )
