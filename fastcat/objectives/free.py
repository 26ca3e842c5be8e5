"""Free adversarial training: L = CE(z(x + delta), y), and delta climbs on the same backward pass.

Source: Shafahi et al. 2019 (arXiv 1904.12843), in the form of Wong et al. 2020 (CIFAR-10): steps of
eps, every step updates the weights with the delta before its own update, and delta is carried from
batch to batch (`attacks/free.py`). With --replays 8 each batch is trained on eight times, as
published; a tenth of the usual epochs is then enough.
"""

from fastcat.attacks.free import FreeAttack
from fastcat.objective import Objective
from fastcat.terms import ce


def free() -> Objective:
    return Objective(views=("adv",), inner=FreeAttack(), outer=ce("adv"))
