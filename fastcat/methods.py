"""All that a method of your own needs, under one import.

    from fastcat.methods import PGD, Objective, ce, kl

    def my_trades(*, beta: float = 6.0) -> Objective:
        return Objective(
            views=("clean", "adv"),
            inner=PGD(loss="kl", start="gaussian"),
            outer=ce("clean") + beta * kl("clean", "adv"),
        )

`fastcat train --peers my_module:my_trades:beta=3` trains it.
"""

from fastcat.attacks.free import FreeAttack
from fastcat.attacks.pgd import PGD
from fastcat.attacks.squeeze import Squeeze
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.objective import Objective
from fastcat.terms import Sum, boosted_ce, ce, kl, mart_kl, square, term

__all__ = [
    "PGD",
    "FreeAttack",
    "Objective",
    "PeerAttack",
    "Squeeze",
    "Sum",
    "TrainingAttack",
    "Work",
    "boosted_ce",
    "ce",
    "kl",
    "mart_kl",
    "square",
    "term",
]
