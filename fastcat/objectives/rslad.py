"""RSLAD: L = scale mean [alpha KL(p_t(x) || p(x_adv)) + (1 - alpha) KL(p_t(x) || p(x))].

t is the teacher; the mean is over images and classes, and no label is read. The attack climbs
KL(p_t(x) || p(x')).

Source: Zi et al. 2021 (ICCV, arXiv 2108.07969), robust soft label adversarial distillation, and
its public code: alpha = 5/6, and for CIFAR-100 scale = 10. The code adds 1e-5 inside the teacher's
logarithm, a constant, where log-probabilities need no guard.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import kl


def rslad(*, alpha: float = 5 / 6, scale: float = 1.0) -> Objective:
    require(0 <= alpha <= 1, f"rslad:alpha={alpha:g}", "a weight in [0, 1]")
    require(scale > 0, f"rslad:scale={scale:g}", "a factor above 0")

    on_adv, on_clean = (
        kl("teacher.clean", view, constant="teacher", by_class=True) for view in ("adv", "clean")
    )
    return Objective(
        views=("adv", "clean"),
        reads=("teacher.clean",),
        inner=PGD(loss="kl", start="gaussian", target="teacher"),
        outer=scale * (alpha * on_adv + (1 - alpha) * on_clean.named("kl_clean")),
    )
