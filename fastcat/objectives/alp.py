"""ALP: L = (CE(z(x_adv), y) + CE(z(x), y)) / 2 + weight * mean (z(x_adv) - z(x))^2.

Adversarial logit pairing, Kannan et al. 2018 (arXiv 1803.06373), in the form that CAT trains (Liu
et al. 2023): two forwards, adversarial first, and the square averaged over images and classes, so
that weight 1 pairs ten classes ten times more softly than a squared distance would.
"""

from torch import Tensor

from fastcat import losses
from fastcat.attack import Inner
from fastcat.objectives.objective import Objective, Terms, require


def alp(*, weight: float = 1.0) -> Objective:
    require(weight >= 0, f"alp:weight={weight:g}", "a weight of at least 0")

    def outer(z: dict[str, Tensor], y: Tensor) -> Terms:
        ce = 0.5 * (losses.ce(z["adv"], y).mean() + losses.ce(z["clean"], y).mean())
        return {"ce": ce, "pairing": weight * (z["adv"] - z["clean"]).square().mean()}

    return Objective(views=("adv", "clean"), inner=Inner(loss="ce", start="uniform"), outer=outer)
