"""Fast adversarial training, as the codes of Wong et al. and of de Jorge et al. run it.

FGSM-RS (train_fgsm.py of fast_adversarial, 2020, arXiv 2001.03994): uniform noise in the ball, one
step of 1.25 eps, clipped to the ball. Its gradient comes by backward(), so that those of all
weights are thrown away: 2 forwards, 2 backwards, 2 of weights. N-FGSM (train.py of N-FGSM, 2022,
arXiv 2202.01181): noise of 2 eps, a step of eps, not clipped. It asks for the gradient of the
images alone: 2, 2 and 1, nothing is wasted. Both attack in train mode, which moves BatchNorm's
running statistics.

Kinder: noise is drawn at once, where both draw and ask the host for a length channel by channel,
and no accuracy is counted for the log.
"""

from typing import ClassVar

import torch
from torch import Tensor

from .plain import PlainLoop, at_loss


def in_box(delta: Tensor, x: Tensor) -> Tensor:
    """x + delta is in [0, 1]."""
    return torch.max(torch.min(delta, 1 - x), -x)


class FastLoop(PlainLoop):
    """As PlainLoop, for one peer of fast."""

    OBJECTIVES: ClassVar = {"fast": (at_loss, ("adv",))}

    def attack(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        delta = in_box(self.uniform_start(k, x), x).requires_grad_()
        self.climbed(self.cross_entropy, k, x + delta, y).backward()
        assert delta.grad is not None
        moved = delta.detach() + 1.25 * self.eps * delta.grad.sign()
        return x + in_box(moved.clamp(-self.eps, self.eps), x)


class NFgsmLoop(FastLoop):
    """As PlainLoop, for one peer of fast:variant=n."""

    def attack(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        delta = in_box(2 * self.uniform_start(k, x), x).requires_grad_()
        loss = self.climbed(self.cross_entropy, k, x + delta, y)
        (grad,) = torch.autograd.grad(loss, delta)
        return x + in_box(delta.detach() + self.eps * grad.sign(), x)
