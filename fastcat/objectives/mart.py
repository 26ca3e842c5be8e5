"""MART: L = BCE(p(x_adv), y) + beta * mean (1.0000001 - p_y(x)) KL(p(x) || p(x_adv)).

Source: Wang et al. 2020 (ICLR), with the constants of the public code; the attack climbs CE.
Nothing is held constant: the weight 1 - p_y and both sides of the KL get gradient. beta = 5 is the
value for ResNet-18; WideResNet-34-10 was trained with 6. floor is added to p(x_adv) inside the KL's
logarithm: 1e-12 in the public code, which so bounds the divergence of one class from another at
27.6; log-probabilities need no guard, and floor 0 has no bound. With a floor no images are mixed.
"""

from torch import Tensor

from fastcat.attacks.pgd import PGD
from fastcat.kernels import losses
from fastcat.objective import Objective, Terms, require
from fastcat.terms import boosted_ce, mart_kl


def mart(*, beta: float = 5.0, floor: float = 0.0) -> Objective:
    require(beta >= 0, f"mart:beta={beta:g}", "a weight of at least 0")
    require(0 <= floor < 1, f"mart:floor={floor:g}", "a small probability, as 1e-12, or 0")

    def floored(z: dict[str, Tensor], y: Tensor) -> Terms:
        log_p, q = z["clean"].log_softmax(1), z["adv"].softmax(1)
        p = log_p.exp()
        kl = (p * (log_p - (q + floor).log())).sum(1)
        weight = 1.0000001 - p.gather(1, y[:, None]).squeeze(1)
        return {
            "bce": losses.boosted_ce(z["adv"], y).mean(),
            "kl": beta * (weight * kl).mean(),
        }

    return Objective(
        views=("clean", "adv"),
        inner=PGD(loss="ce", start="gaussian"),
        outer=floored if floor else boosted_ce("adv") + beta * mart_kl("clean", "adv"),
    )
