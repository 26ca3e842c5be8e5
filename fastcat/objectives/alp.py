"""ALP: L = (CE(z(x_adv), y) + CE(z(x), y)) / 2 + weight * mean (z(x_adv) - z(x))^2.

Adversarial logit pairing, Kannan et al. 2018 (arXiv 1803.06373), in the form that CAT trains (Liu
et al. 2023): two forwards, adversarial first, and the square averaged over images and classes, so
that weight 1 pairs ten classes ten times more softly than a squared distance would. smoothing is
that of the labels in both CE: 0.1 in the code of Kannan et al., none in CAT. CAT's script attacks
with the running statistics (--BNeval); its code without that option is bn=moving. Pang et al. 2020
(arXiv 2002.08619) start at Gaussian noise: start=gaussian.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce, square


def alp(*, weight: float = 1.0, smoothing: float = 0.0) -> Objective:
    require(weight >= 0, f"alp:weight={weight:g}", "a weight of at least 0")
    require(0 <= smoothing < 1, f"alp:smoothing={smoothing:g}", "a share in [0, 1)")

    return Objective(
        views=("adv", "clean"),
        inner=PGD(loss="ce", start="uniform"),
        outer=0.5 * (ce("adv", smoothing) + ce("clean", smoothing))
        + weight * square("clean", "adv"),
    )
