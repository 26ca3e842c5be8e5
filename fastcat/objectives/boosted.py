"""Boosted cross-entropy: L = BCE(p(x_adv), y), MART's first term alone, and the attack climbs it.

BCE = -log p_y - log(1 - max_{k != y} p_k), with the margins of MART's code. It is the C of Mutual
Adversarial Training, Liu et al. 2021 (arXiv 2112.05005), whose inner maximisation is written as C
itself; MART's code climbs CE, which is inner="ce". The paper names neither start noise nor
BatchNorm mode and has no public code: here both are MART's.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective
from fastcat.terms import boosted_ce


def boosted(*, inner: str = "boosted_ce") -> Objective:
    return Objective(
        views=("adv",),
        inner=PGD(loss=inner, start="gaussian"),  # type: ignore[arg-type]
        outer=boosted_ce("adv"),
    )
