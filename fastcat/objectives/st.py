"""ST: L = CE(z(x), y) + beta * mean R(upper, lower), of {adv, clean, col} by their p_y.

Squeeze Training, Li et al. 2023 (ICLR), by the public code: upper has the lowest p_y, lower the
highest, chosen anew on these logits; `attacks/squeeze.py` says how adv and col are sought. R is

    symmkl  0.5 [KL(sg p_lower || p_upper) + KL(sg p_upper || p_lower)], sg: no gradient
    js      0.5 [KL(p_lower || m) + KL(p_upper || m)],  m = (p_lower + p_upper) / 2
    l2      sum_k (p_upper - p_lower)_k^2

The public code has symmkl alone, with these constants, which make its gradient another than that
of the symmetric KL. The paper studied the other two too; where they hold something constant, and
whether the sum has a factor, could not be verified: here gradient flows to both sides, and all
three are attacked with symmkl. beta = 6 is the semi-supervised recipe's; CIFAR's is not known. As
published, the attack normalises by statistics of the batch, and the forward of col does not move
the running ones. The semi-supervised code starts at uniform noise that may leave [0, 1]
(start=unclipped), and forwards the adversarial images before the clean ones. official=true attacks
as the public code does where that departs from the formula: `attacks/squeeze.py` says how.
"""

import math

import torch
from torch import Tensor

from fastcat.attacks.squeeze import Squeeze, pick, select
from fastcat.kernels import losses
from fastcat.objective import Objective, Terms, require


def symmkl(upper: Tensor, lower: Tensor) -> Tensor:
    return 0.5 * (losses.kl(lower.detach(), upper) + losses.kl(upper.detach(), lower))


def js(upper: Tensor, lower: Tensor) -> Tensor:
    # as logits log m is its own log_softmax
    log_m = upper.log_softmax(1).logaddexp(lower.log_softmax(1)) - math.log(2)
    return 0.5 * (losses.kl(upper, log_m) + losses.kl(lower, log_m))


def l2(upper: Tensor, lower: Tensor) -> Tensor:
    return (upper.softmax(1) - lower.softmax(1)).square().sum(1)


REGULARISERS = {"symmkl": symmkl, "js": js, "l2": l2}


def st(*, beta: float = 6.0, reg: str = "symmkl", official: bool = False) -> Objective:
    require(beta >= 0, f"st:beta={beta:g}", "a weight of at least 0")
    require(reg in REGULARISERS, f"st:reg={reg}", f"one of {', '.join(REGULARISERS)}")

    def outer(z: dict[str, Tensor], y: Tensor) -> Terms:
        three = torch.stack([z["adv"], z["clean"], z["col"]])
        upper, lower = (pick(three, place) for place in select(three.detach(), y, official))
        return {
            "ce": losses.ce(z["clean"], y).mean(),
            "squeeze": beta * REGULARISERS[reg](upper, lower).mean(),
        }

    return Objective(
        views=("clean", "adv", "col"),
        untracked=("col",),
        inner=Squeeze(official=official),
        outer=outer,
    )
