"""Gradients of `losses.py` in the logits by hand, in plain torch: autograd is off inside an op.

Each takes what the loss takes, logits [B, C] and labels [B], and returns a gradient [B, C] of the
sum over the images for each argument of logits, the student's last. With e_k one-hot,
p = softmax(z) and t = softmax(teacher):

    ce          p - e_y
    uniform_ce  p - 1 / C
    margin      e_wrong - e_y                                 wrong: largest, the first of equals
    dlr         (e_wrong - e_y - dlr (e_(1) - e_(3))) / spread
    boosted_ce  p - e_y + p_wrong / (1.0001 - p_wrong) (e_wrong - p)
    kl          teacher t (log t - log p - KL),  student p - t
    mart_kl     w times those of KL, w = 1.0000001 - t_y;  teacher in addition -KL t_y (e_y - t)
    square      2 (teacher - z) / C,  2 (z - teacher) / C
"""

import torch
from torch import Tensor

from . import losses


def _one_hot(z: Tensor, at: Tensor) -> Tensor:
    return torch.zeros_like(z).scatter(1, at[:, None], 1)


def _wrong(z: Tensor, y: Tensor) -> Tensor:
    """e_wrong, wrong the largest logit but the label's."""
    return _one_hot(z, z.scatter(1, y[:, None], float("-inf")).argmax(1))


def ce(z: Tensor, y: Tensor) -> tuple[Tensor]:
    return (z.softmax(1) - _one_hot(z, y),)


def uniform_ce(z: Tensor) -> tuple[Tensor]:
    return (z.softmax(1) - 1 / z.shape[1],)


def margin(z: Tensor, y: Tensor) -> tuple[Tensor]:
    return (_wrong(z, y) - _one_hot(z, y),)


def dlr(z: Tensor, y: Tensor) -> tuple[Tensor]:
    top = z.topk(3, dim=1)
    spread = top.values[:, :1] - top.values[:, 2:] + 1e-12
    d_spread = _one_hot(z, top.indices[:, 0]) - _one_hot(z, top.indices[:, 2])
    return ((margin(z, y)[0] - losses.dlr(z, y)[:, None] * d_spread) / spread,)


def boosted_ce(z: Tensor, y: Tensor) -> tuple[Tensor]:
    p, wrong = z.softmax(1), _wrong(z, y)
    p_wrong = (p * wrong).sum(1, keepdim=True)
    return (ce(z, y)[0] + p_wrong / (1.0001 - p_wrong + 1e-12) * (wrong - p),)


def kl(teacher: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    t, p = teacher.softmax(1), z.softmax(1)
    difference = teacher.log_softmax(1) - z.log_softmax(1)
    return t * (difference - losses.kl(teacher, z)[:, None]), p - t


def mart_kl(teacher: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    t, label = teacher.softmax(1), _one_hot(teacher, y)
    t_y = (t * label).sum(1, keepdim=True)
    d_teacher, d_student = ((1.0000001 - t_y) * d for d in kl(teacher, z))
    return d_teacher - losses.kl(teacher, z)[:, None] * t_y * (label - t), d_student


def square(teacher: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    d_student = 2 * (z - teacher) / z.shape[1]
    return -d_student, d_student
