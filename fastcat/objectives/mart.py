"""MART: L = BCE(p(x_adv), y) + beta * mean (1.0000001 - p_y(x)) KL(p(x) || p(x_adv)).

Source: Wang et al. 2020 (ICLR), with the constants of the public code; the attack climbs CE.
Nothing is held constant: the weight 1 - p_y and both sides of the KL get gradient. The public code
adds 1e-12 inside the KL's logarithm, where log-probabilities need no guard. beta = 5 is
the value for ResNet-18; WideResNet-34-10 was trained with 6.
"""

from fastcat.attack import Inner
from fastcat.objectives.objective import Objective, require
from fastcat.terms import boosted_ce, mart_kl


def mart(*, beta: float = 5.0) -> Objective:
    require(beta >= 0, f"mart:beta={beta:g}", "a weight of at least 0")

    return Objective(
        views=("clean", "adv"),
        inner=Inner(loss="ce", start="gaussian"),
        outer=boosted_ce("adv") + beta * mart_kl("clean", "adv"),
    )
