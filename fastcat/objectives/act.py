"""ACT: a natural and a robust peer teach each other; act:role=natural,act:role=robust.

    natural   L = (1 - alpha) CE(z(x), y)     + alpha T^2 mean KL(p_r(x_adv; T) || p(x; T))
    robust    L = (1 - alpha) CE(z(x_adv), y) + alpha T^2 mean KL(p_n(x; T) || p(x_adv; T))

n, r: the natural and the robust one, constants for each other; x_adv: the robust one's adversary,
whose attack climbs KL(p_n(x) || p_r(x')); p(x; T) = softmax(z(x) / T).

Source: Arani et al. 2020 (arXiv 2008.07015), adversarial concurrent training, and its public code
with its settings, where p_n(x) of the attack comes from train mode too. Its attack climbs
(1 - alpha) CE / B beside alpha KL of each image, which is the KL in effect: here the KL alone.
"""

from fastcat.attacks.pgd import PGD
from fastcat.objective import Objective, require
from fastcat.terms import ce, kl


def act(*, role: str = "robust", alpha: float = 0.9, temperature: float = 4.0) -> Objective:
    require(role in ("natural", "robust"), f"act:role={role}", "natural or robust")
    require(0 <= alpha <= 1, f"act:alpha={alpha:g}", "a weight in [0, 1]")

    view, read = ("adv", "teacher.clean") if role == "robust" else ("clean", "teacher.own")
    taught = kl(read, view, constant="teacher", temperature=temperature)
    return Objective(
        views=(view,),
        reads=(read,),
        inner=PGD(loss="kl", start="gaussian", target="teacher") if role == "robust" else None,
        outer=(1 - alpha) * ce(view) + (alpha * temperature**2) * taught,
    )
