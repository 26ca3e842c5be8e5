"""IAD-I: L = mean KL(p_t(x) || p(x_adv)) + mean (1 - a) KL(p(x) || p(x_adv)), t the teacher.

a = p_t,y(x_adv)^beta says how far the teacher is to be trusted: where it is not, the student learns
from itself. This second term counts after `begin` epochs; both its sides get gradient. The attack
climbs CE.

Source: Zhu et al. 2022 (ICLR, arXiv 2106.04928), introspective adversarial distillation, and its
public code IAD-I with its settings: the first term has no factor a, the temperature is 1, and the
attack normalises by statistics of the batch (here without moving the running ones, unless
bn=moving). The code forwards the adversary and the clean images once or twice more each, which
moves BatchNorm's statistics; here each is forwarded once. Its start is not clipped to [0, 1]: that
is start=unclipped.
"""

from torch import Tensor

from fastcat.attacks.pgd import PGD
from fastcat.kernels import losses
from fastcat.objective import Objective, Terms, require


def iad(*, beta: float = 0.1, begin: int = 60) -> Objective:
    require(beta >= 0, f"iad:beta={beta:g}", "an exponent of at least 0")
    require(begin >= 0, f"iad:begin={begin}", "a number of epochs of at least 0")

    def outer(z: dict[str, Tensor], y: Tensor) -> Terms:
        trust = (-beta * losses.ce(z["teacher.adv"], y)).exp()
        own = (1 - trust) * losses.kl(z["clean"], z["adv"])
        return {"kl": losses.kl(z["teacher.clean"], z["adv"]).mean(), "own": own.mean()}

    return Objective(
        views=("adv", "clean"),
        reads=("teacher.clean", "teacher.adv"),
        inner=PGD(loss="ce", start="uniform", bn="train"),
        outer=outer,
        begins={"own": begin},
    )
