"""TRADES: L = CE(z(x), y) + beta * mean KL(p(x) || p(x_adv)), the attack climbs the KL.

Source: Zhang et al. 2019 (arXiv 1901.08573), Eq. 5; beta is their 1/lambda. Both sides of the KL
get gradient. The public code forwards the clean images a second time, which gives the same loss
and gradient but moves the running statistics of BatchNorm once more; here they are forwarded once.
The public code of CAT (Liu et al. 2023) forwards them in train mode after the update too, for the
accuracy that it logs: that is log_forward=true.
smoothing is that of the labels in the CE: 0.1 in Rebuffi et al. 2021 (arXiv 2103.01946) and their
successors, whose public code attacks from uniform noise by statistics of the batch, the running
ones left alone: start=uniform, bn=train.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce, kl


def trades(*, beta: float = 6.0, smoothing: float = 0.0) -> Objective:
    require(beta >= 0, f"trades:beta={beta:g}", "a weight of at least 0")
    require(0 <= smoothing < 1, f"trades:smoothing={smoothing:g}", "a share in [0, 1)")

    return Objective(
        views=("clean", "adv"),
        inner=PGD(loss="kl", start="gaussian"),
        outer=ce("clean", smoothing) + beta * kl("clean", "adv"),
    )
