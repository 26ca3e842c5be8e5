"""Training under several norms at once, as the code of Maini et al. (MSD, 2020) runs it.

  linf, l2, l1   CE under one attack by PGD
  avg            the mean of CE under one attack for each norm
  max            CE under one attack for each norm, of which each image keeps the worst
  msd            CE under one attack that tries the step of every norm, for each image the worst

Source: arXiv 1909.04068 and its public robust_union: attacks start at the image, and the largest
loss over all steps of msd is kept. Attacks of MAT-MP are written so too; it has no public code.

What costs time: each step of PGD forwards twice, with a graph, first for a prediction that only
the test reads; every gradient comes by backward(), so that those of all weights are thrown away;
what is larger is copied by masks; each step in l1 asks the host whether any image has left the
ball.

With M norms and S steps for each, forwards and backwards, as many of weights: 2S + 1 and S + 1 for
one norm; M (2S + 1) and M (S + 1) for avg; M (2S + 1) + 1 and MS + 1 for max; S (1 + M) + 1 and
S + 1 for msd.

Otherwise than there: BatchNorm is in eval mode during the attack, with the same counts; avg takes
one step of SGD where there are three, one after each attack; l1 moves the 20 largest coordinates
where a step draws 5 to 20, may move those at 0 and 1, and starts no second time. Kinder: thresholds
of l1 are gathered at once and not in a loop over the images, float32 where there is float16.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import PlainLoop, boosted_of_each

SPARSITY = 20


class Ball(NamedTuple):
    """eps, step_size: in the norm, of pixels in [0, 1]."""

    norm: str
    eps: float
    step_size: float
    steps: int


# theirs, but for their 50 steps; in l1 they step by 0.05 in each of 20 coordinates
BALLS = (Ball("linf", 0.03, 0.003, 10), Ball("l2", 0.5, 0.05, 10), Ball("l1", 12.0, 1.0, 10))


def lengths(delta: Tensor) -> Tensor:
    return delta.flatten(1).norm(dim=1)[:, None, None, None]


def largest_signs(grad: Tensor, x_adv: Tensor, room: float) -> Tensor:
    """Signs of the largest gradients in each image among those that stay in the box."""
    ahead = x_adv + room * grad.sign()
    size = grad.abs() * ((ahead >= 0) & (ahead <= 1))
    last = size.flatten(1).topk(SPARSITY, dim=1).values[:, -1, None, None, None]
    return grad.sign() * ((size >= last) & (size > 0))


def project_l1(delta: Tensor, eps: float) -> Tensor:
    size = delta.abs()
    if (size.sum((1, 2, 3)) <= eps).all():
        return delta
    largest = size.flatten(1).sort(descending=True).values
    excess = largest.cumsum(1) - eps
    counts = torch.arange(1, largest.shape[1] + 1, device=delta.device)
    last = (largest * counts > excess).sum(1, keepdim=True) - 1
    theta = (excess.gather(1, last) / (last + 1)).clamp(min=0)
    return delta.sign() * (size - theta[..., None, None]).clamp(min=0)


def moved(ball: Ball, delta: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """delta after one step."""
    if ball.norm == "linf":
        delta = (delta + ball.step_size * grad.sign()).clamp(-ball.eps, ball.eps)
    elif ball.norm == "l2":
        delta = delta + ball.step_size * grad / lengths(grad)
        delta = delta * (ball.eps / lengths(delta).clamp(min=ball.eps))
    else:
        step = ball.step_size / SPARSITY
        delta = project_l1(delta + step * largest_signs(grad, x + delta, step), ball.eps)
    return torch.min(torch.max(delta, -x), 1 - x)


def ce_of_each(y: Tensor, adv: Tensor) -> Tensor:
    return F.cross_entropy(adv, y, reduction="none")


OF_EACH = {"at": ce_of_each, "boosted": boosted_of_each}


def mean_loss(of_each: Callable[..., Tensor], y: Tensor, *views: Tensor) -> Tensor:
    return torch.stack([of_each(y, adv).mean() for adv in views]).mean()


class UnionLoop(PlainLoop):
    """As PlainLoop, for one peer of at.

    threats: for each peer what attacks it, a norm of balls, or avg, max or msd of all of them.
    winners: by peer the number of the ball that max chose for each image, `[B]`.
    """

    OBJECTIVES: ClassVar = {
        method: (partial(mean_loss, of_each), ("adv",)) for method, of_each in OF_EACH.items()
    }

    def __init__(
        self,
        models: Sequence[nn.Module],
        methods: Sequence[str],
        *,
        threats: Sequence[str],
        balls: Sequence[Ball] = BALLS,
        **settings: Any,
    ) -> None:
        super().__init__(models, methods, **settings)
        self.threats = list(threats)
        self.balls = list(balls)
        self.winners: dict[int, Tensor] = {}
        for k, threat in enumerate(threats):
            if threat == "avg":
                self.own_views[k] = [f"{ball.norm}.adv{k}" for ball in balls]

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        views = {"clean": x}
        for k, own in enumerate(self.own_views):
            self.models[k].eval()
            views.update(zip(own, self.found(k, x, y), strict=True))
            self.models[k].train()
        return views

    def found(self, k: int, x: Tensor, y: Tensor) -> list[Tensor]:
        threat = self.threats[k]
        if threat == "msd":
            return [self.msd(k, x, y)]
        balls = [ball for ball in self.balls if threat in (ball.norm, "avg", "max")]
        ends = [self.pgd(k, x, y, ball) for ball in balls]
        return [self.worst(k, ends, y)] if threat == "max" else ends

    def pgd(self, k: int, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        delta = torch.zeros_like(x, requires_grad=True)
        for _ in range(ball.steps):
            self.mistakes(k, x + delta, y)
            self.climbed(self.goal, k, x + delta, y).backward()
            assert delta.grad is not None
            delta.data = moved(ball, delta.detach(), delta.grad, x)
            delta.grad.zero_()
        return x + delta.detach()

    def mistakes(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        """Which images are already wrong."""
        return self.forward(k, x_adv).argmax(dim=1) != y

    def worst(self, k: int, views: list[Tensor], y: Tensor) -> Tensor:
        losses = [self.climbed(self.loss_of_each, k, view, y) for view in views]
        self.winners[k] = torch.stack(losses).argmax(dim=0)
        return torch.stack(views)[self.winners[k], torch.arange(len(y), device=y.device)]

    def msd(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        delta = torch.zeros_like(x, requires_grad=True)
        best, lowest = torch.zeros_like(x), y.new_full((len(y),), -torch.inf, dtype=x.dtype)
        best_loss = lowest.clone()
        for _ in range(max(ball.steps for ball in self.balls)):
            self.climbed(self.goal, k, x + delta, y).backward()
            assert delta.grad is not None
            chosen, chosen_loss = torch.zeros_like(x), lowest
            with torch.no_grad():
                for ball in self.balls:
                    candidate = moved(ball, delta.detach(), delta.grad, x)
                    loss = self.climbed(self.loss_of_each, k, x + candidate, y)
                    larger = loss > chosen_loss
                    chosen[larger] = candidate[larger]
                    chosen_loss = torch.max(chosen_loss, loss)
            delta.data = chosen
            larger = chosen_loss > best_loss
            best[larger] = chosen[larger]
            best_loss[larger] = chosen_loss[larger]
            delta.grad.zero_()
        return x + best

    def loss_of_each(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        return OF_EACH[self.methods[k]](y, self.forward(k, x_adv))

    def goal(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        return self.loss_of_each(k, x_adv, y).mean()
