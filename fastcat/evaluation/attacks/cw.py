"""PGD on the Carlini-Wagner margin, the largest other logit minus the label's
(Carlini & Wagner 2017, arXiv 1608.04644).
"""

from fastcat.evaluation.attack import NoiseAttack
from fastcat.evaluation.attacks.pgd import pgd


def cw(steps: int, start: str = "uniform", restarts: int | None = None) -> NoiseAttack:
    """PGD on the Carlini-Wagner margin."""
    return pgd(steps, "margin", start, restarts)
