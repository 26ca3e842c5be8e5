"""Losses of one image from its logits; every method is put together from these.

    ce(z, y)          -log p_y
    uniform_ce(z)     -mean_k log p_k, against the uniform distribution  (label smoothing)
    margin(z, y)      max_{k != y} z_k - z_y                     (Carlini & Wagner 2017, f_6)
    boosted_ce(z, y)  -log p_y - log(1.0001 - max_{k != y} p_k)  (MART, Wang et al. 2020)
    dlr(z, y)         (max_{k != y} z_k - z_y) / (z_(1) - z_(3))    (Croce & Hein 2020, Eq. 6)
    kl(t, z)          KL(softmax(t) || softmax(z))
    mart_kl(t, z, y)  (1.0000001 - softmax(t)_y) KL(softmax(t) || softmax(z))    (MART)
    square(t, z)      mean_k (z_k - t_k)^2                           (logit pairing)

z_(1) and z_(3) are the largest and third largest logit. Each takes logits [B, C] and returns [B] in
nats (margin, square: in logits). Gradients flow into every logits argument; a caller who wants a
constant teacher detaches it. dlr needs three classes.
"""

import torch.nn.functional as F
from torch import Tensor


def ce(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def uniform_ce(z: Tensor) -> Tensor:
    return -z.log_softmax(1).mean(1)


def wrong_max(values: Tensor, y: Tensor) -> Tensor:
    """The largest value [B] among the classes other than y."""
    return values.scatter(1, y[:, None], float("-inf")).max(dim=1).values


def margin(z: Tensor, y: Tensor) -> Tensor:
    return wrong_max(z, y) - z.gather(1, y[:, None]).squeeze(1)


def dlr(z: Tensor, y: Tensor) -> Tensor:
    top = z.topk(3, dim=1).values
    # 1e-12 is part of the published definition
    return margin(z, y) / (top[:, 0] - top[:, 2] + 1e-12)


def boosted_ce(z: Tensor, y: Tensor) -> Tensor:
    # 1.0001 and 1e-12 are part of the published definition; both vanish in half precision
    return ce(z, y) - (1.0001 - wrong_max(z.softmax(1), y) + 1e-12).log()


def kl(teacher: Tensor, z: Tensor) -> Tensor:
    # log-probabilities on both sides: with probabilities the teacher's gradient is NaN
    # as soon as one of them underflows
    log_z, log_t = z.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(log_z, log_t, reduction="none", log_target=True).sum(1)


def mart_kl(teacher: Tensor, z: Tensor, y: Tensor) -> Tensor:
    # 1.0000001 is part of the published code; the weight gets gradient as well
    p_y = teacher.softmax(1).gather(1, y[:, None]).squeeze(1)
    return (1.0000001 - p_y) * kl(teacher, z)


def square(teacher: Tensor, z: Tensor) -> Tensor:
    return (z - teacher).square().mean(1)
