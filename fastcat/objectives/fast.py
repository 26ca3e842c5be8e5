"""Fast adversarial training: L = CE(z(x_adv), y) after a single step of the attack.

    rs   x + U(-eps, eps), clipped to [0, 1], one sign step of 1.25 eps, projected on the ball
    n    x + U(-2 eps, 2 eps), clipped to [0, 1], one sign step of eps, not projected

rs: FGSM with a random start, Wong et al. 2020 (arXiv 2001.03994), whose code takes 10/255 for eps
8/255. n: N-FGSM, de Jorge et al. 2022 (arXiv 2202.01181), noise twice as far and no projection,
against catastrophic overfitting. Both attack in train mode, which moves the running statistics:
bn=moving; here they are left alone. The lengths are shares of the threat model's eps, whose own
step size and steps are not used.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce

VARIANTS = {
    "rs": {"step": 1.25},
    # nothing that start and step can reach lies outside of this ball
    "n": {"step": 1.0, "reach": 3.0, "start_share": 2 / 3},
}


def fast(*, variant: str = "rs") -> Objective:
    require(variant in VARIANTS, f"fast:variant={variant}", f"one of {', '.join(VARIANTS)}")

    return Objective(
        views=("adv",),
        inner=PGD(loss="ce", start="uniform", bn="train", steps=1, **VARIANTS[variant]),  # type: ignore[arg-type]
        outer=ce("adv"),
    )
