"""Distillation of robustness, as the codes of ARD, RSLAD, IAD-I and ACT run it; s: softmax(z / T).

  ARD     T^2 mean KL(s_t(x) || s(x_adv)) + 0 CE(z(x), y), T = 30
  RSLAD   mean [5/6 KL(p_t(x) || p(x_adv)) + 1/6 KL(p_t(x) || p(x))]
  IAD-I   KL_batchmean(p_t(x) || p(x_adv)) + (1/B) sum_i (1 - p_t,y(x_adv)^0.1) KL(p(x) || p(x_adv))
  ACT     0.1 CE(z, y) + 0.9 T^2 KL_batchmean(sg[s_other] || s), of two peers, T = 4

t is the teacher and a mean over images and classes; in ACT the natural peer's x and the robust
one's x_adv face each other. Sources: Goldblum et al., 2020, arXiv 1905.09747; Zi et al., 2021,
arXiv 2108.07969; Zhu et al., 2022, arXiv 2106.04928, after its epoch 60; Arani et al., 2020, arXiv
2008.07015. All ask for the gradient of the images alone. ARD and IAD-I attack in train mode, which
moves BatchNorm's running statistics.

What costs time: ARD and IAD-I forward x for a cross-entropy of weight 0, and its graph is gone
through; IAD-I forwards x again for its own term. With S steps: S + 3 forwards, S + 2 backwards and
2 of weights; IAD-I S + 5, S + 3 and 3; ACT S + 2, S + 2 and 2, nothing is wasted.

Otherwise than there: starts are clipped to [0, 1], and ACT climbs KL without a CE that is B times
smaller. Kinder: what IAD-I's teacher says of the labels is gathered at once where each image asks
the host twice, and ACT logs two numbers of the ten.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .plain import PlainLoop, kl_batchmean

TEACHER = 1


def softened_kl(told: Tensor, z: Tensor, temperature: float) -> Tensor:
    """T^2 KL_batchmean(softmax(z_teacher / T) || softmax(z / T))."""
    return temperature**2 * kl_batchmean(told / temperature, z / temperature)


def ard_loss(y: Tensor, told: Tensor, adv: Tensor, clean: Tensor) -> Tensor:
    return softened_kl(told, adv, 30.0) / adv.shape[1] + 0.0 * F.cross_entropy(clean, y)


def rslad_loss(y: Tensor, told: Tensor, adv: Tensor, clean: Tensor) -> Tensor:
    return (5 / 6 * kl_batchmean(told, adv) + 1 / 6 * kl_batchmean(told, clean)) / adv.shape[1]


class StudentLoop(PlainLoop):
    """As PlainLoop, for a student and its teacher, in this order."""

    def __init__(
        self, models: Sequence[nn.Module], methods: Sequence[str], **settings: Any
    ) -> None:
        student, teacher = models
        super().__init__([student], methods[:1], **settings)
        self.models.append(teacher.eval().requires_grad_(False))

    def logs_accuracy(self) -> bool:
        return False

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.told = self.forward(TEACHER, x)
        return super().all_views(x, y)

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        own = [self.forward(0, views[view]) for view in self.own_views[0]]
        loss, _ = self.OBJECTIVES[self.methods[0]]
        return [loss(y, self.told, *own)], None


class RsladLoop(StudentLoop):
    """As StudentLoop, of rslad."""

    OBJECTIVES: ClassVar = {"rslad": (rslad_loss, ("adv", "clean"))}

    def seek(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.gaussian_attack(k, x, self.kl_to, self.told)


class ArdLoop(StudentLoop):
    """As StudentLoop, of ard."""

    OBJECTIVES: ClassVar = {"ard": (ard_loss, ("adv", "clean"))}

    def attack(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        start = (x + self.uniform_start(k, x)).clamp(0.0, 1.0)
        return self.climb(k, start, x, self.cross_entropy, y)


class IadLoop(ArdLoop):
    """As StudentLoop, of iad."""

    OBJECTIVES: ClassVar = {"iad": (ard_loss, ("adv", "clean"))}

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        adv, clean = (self.forward(0, views[view]) for view in self.own_views[0])
        guide = F.softmax(self.forward(TEACHER, views["adv0"]), dim=1)
        trust = guide.gather(1, y[:, None])[:, 0] ** 0.1
        again = F.softmax(self.forward(0, views["clean"]), dim=1)
        own = F.kl_div(F.log_softmax(adv, dim=1), again, reduction="none").sum(dim=1)
        loss = kl_batchmean(self.told, adv) + ((1 - trust) * own).sum() / len(y)
        return [loss + 0.0 * F.cross_entropy(clean, y)], None


class ActLoop(PlainLoop):
    """As PlainLoop, for a natural and a robust peer of act, in this order."""

    OBJECTIVES: ClassVar = {"act": (softened_kl, ("adv",))}

    def logs_accuracy(self) -> bool:
        return False

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        self.natural = self.forward(0, x)
        return {"clean": x, "adv1": self.attack(1, x, y)}

    def seek(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.gaussian_attack(k, x, self.kl_to, self.natural.detach())

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        z = [self.natural, self.forward(1, views["adv1"])]
        both = zip(z, reversed(z), strict=True)
        return [
            0.1 * F.cross_entropy(own, y) + 0.9 * softened_kl(other.detach(), own, 4.0)
            for own, other in both
        ], None
