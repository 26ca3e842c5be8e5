"""Adversarial training: L = CE(z(x_adv), y), the attack climbs the same loss.

Source: Madry et al. 2018 (arXiv 1706.06083), Eq. 2.1. bn="eval" attacks with the running
statistics (Pang et al. 2021); Madry et al. and Rice et al. attack with those of the batch:
bn="train", here without moving the running ones. smoothing is that of the labels in the loss; the
attack climbs CE with the labels as they are.
"""

from fastcat.attack import Inner
from fastcat.objectives.objective import Objective, require
from fastcat.terms import ce


def at(*, bn: str = "eval", smoothing: float = 0.0) -> Objective:
    require(0 <= smoothing < 1, f"at:smoothing={smoothing:g}", "a share in [0, 1)")

    return Objective(
        views=("adv",),
        inner=Inner(loss="ce", start="uniform", bn=bn),  # type: ignore[arg-type]
        outer=ce("adv", smoothing),
    )
