"""ARD: L = alpha T^2 mean KL(p_t(x; T) || p(x_adv; T)) + (1 - alpha) CE(z(x), y), t the teacher.

p(x; T) = softmax(z(x) / T); the mean is over images and classes, as the public code's KLDivLoss
has it, so that ten classes weigh a tenth of a divergence. The attack climbs CE.

Source: Goldblum et al. 2020 (arXiv 1905.09747), adversarially robust distillation, and its public
code, whose settings are these, and which attacks with statistics of the batch (here without moving
the running ones, unless bn=moving). It forwards the clean images with alpha = 1 too, for
BatchNorm's statistics alone; here they are forwarded where they are read. Its start is not clipped
to [0, 1]: that is start=unclipped.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce, kl


def ard(*, alpha: float = 1.0, temperature: float = 30.0) -> Objective:
    require(0 <= alpha <= 1, f"ard:alpha={alpha:g}", "a weight in [0, 1]")

    outer = (alpha * temperature**2) * kl(
        "teacher.clean", "adv", constant="teacher", temperature=temperature, by_class=True
    )
    if alpha < 1:
        outer += (1 - alpha) * ce("clean")
    return Objective(
        views=("adv", "clean") if alpha < 1 else ("adv",),
        reads=("teacher.clean",),
        inner=PGD(loss="ce", start="uniform", bn="train"),
        outer=outer,
    )
