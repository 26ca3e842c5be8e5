"""Attacks under several norms as the public code of Maini et al. runs them, in delta = x' - x.

Every attack begins at delta = 0 and ascends the cross-entropy. One step of
  linf  delta + s sign(g), clipped to [-eps, eps]
  l2    delta + s g / ||g||_2, times eps / max(||delta||_2, eps)
  l1    delta + s / n sign(g) on n coordinates, then "projected"
then delta is clipped to [-x, 1 - x].

l1: n is drawn from 5 to 20 at each step, one for the batch. A coordinate is frozen where x' <= 0 or
x' >= 1, where g < 0 and x' <= gap, and where g > 0 and x' >= 1 - gap; the |g| of the frozen count
as 0. Those move whose |g| is the n-th largest at least. The projection leaves a batch alone where
no image is longer than eps. Else it subtracts theta = (sum of the r largest |delta| - eps) / r from
every |delta| and keeps what is positive; r is the last for which r times the r-th largest |delta|
is more than that sum less eps. Inside of the ball r is the number of all coordinates and theta is
negative: what is not 0 grows.

  max  gap s / 20 = 0.05, each norm in its own number of steps; l1 once more from a point uniform in
       the cube, scaled to l1 norm 1, whose end replaces the first where it is misjudged; each image
       takes the end of largest CE.
  msd  gap s / n; each step tries all norms from the same delta and gradient and each image takes
       the candidate of largest CE; of all iterates each image keeps that of largest CE.

Source: https://github.com/locuslab/robust_union, CIFAR10/cifar_funcs.py. Their networks are in
train mode; bn is the caller's. Draws of n: 5 + floor(16 (u + 1) / 2) of uniform u in [-1, 1], one
after the other as they stand in the noise.
Shapes: M norms, B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Of = Callable[[Tensor], Tensor]


def draws(noise: Tensor, steps: int) -> list[int]:
    """n of each step; noise `[B, C, H, W]`."""
    numbers = noise.flatten().tolist()
    return [min(5 + int(16 * (numbers[t % len(numbers)] + 1) / 2 // 1), 20) for t in range(steps)]


def lengths(delta: Tensor, p: int) -> Tensor:
    return delta.flatten(1).norm(p, dim=1)[:, None, None, None]


def project_l1(delta: Tensor, eps: float) -> Tensor:
    """As the header has it; images one after the other."""
    if not (lengths(delta, 1) > eps).any():
        return delta
    images = []
    for image in delta:
        sizes = sorted(image.abs().flatten().tolist(), reverse=True)
        total, above = 0.0, (0.0, 1)
        for r, size in enumerate(sizes, 1):
            total += size
            if r * size > total - eps:
                above = (total - eps, r)
        images.append(image.sign() * (image.abs() - above[0] / above[1]).clamp(min=0.0))
    return torch.stack(images)


def step_l1(delta: Tensor, x: Tensor, grad: Tensor, ball: Any, n: int, gap: float) -> Tensor:
    now = x + delta
    frozen = (grad < 0) & (now <= gap)
    frozen |= (grad > 0) & (now >= 1 - gap)
    frozen |= (now <= 0) | (now >= 1)
    grad = torch.where(frozen, torch.zeros_like(grad), grad)
    moves = []
    for image in grad:
        bar = sorted(image.abs().flatten().tolist(), reverse=True)[n - 1]
        moves.append(image.sign() * (image.abs() >= bar))
    return project_l1(delta + ball.step_size / n * torch.stack(moves), ball.eps)


def step(delta: Tensor, x: Tensor, grad: Tensor, ball: Any, n: int, gap: float) -> Tensor:
    """delta after one step in a ball; n, gap: for l1."""
    if ball.norm == "linf":
        delta = (delta + ball.step_size * grad.sign()).clamp(-ball.eps, ball.eps)
    elif ball.norm == "l2":
        delta = delta + ball.step_size * grad / lengths(grad, 2)
        delta = delta * ball.eps / lengths(delta, 2).clamp(min=ball.eps)
    else:
        delta = step_l1(delta, x, grad, ball, n, gap)
    return torch.minimum(torch.maximum(delta, -x), 1.0 - x)


def attack_max(
    x: Tensor, grad: Of, loss: Of, misjudged: Of, balls: Sequence[Any], noise: Tensor
) -> tuple[Tensor, Tensor]:
    """View and number of the ball of each image; noise `[2, B, C, H, W]`: of n, of the start.

    grad, loss, misjudged: of views `[B, C, H, W]`; misjudged: whether another class is answered.
    """
    ends = []
    for ball in balls:
        starts = [torch.zeros_like(x)]
        if ball.norm == "l1":
            cube = ball.eps * noise[1]
            starts.append(cube / lengths(cube, 1).clamp(min=ball.eps))
        n = draws(noise[0], 2 * ball.steps)
        end = torch.zeros_like(x)
        for number, delta in enumerate(starts):
            for t in range(ball.steps):
                of_l1 = (n[number * ball.steps + t], ball.step_size / 20)
                delta = step(delta, x, grad(x + delta), ball, *of_l1)
            counts = misjudged(x + delta) if number else torch.ones(len(x), dtype=torch.bool)
            end = torch.where(counts[:, None, None, None], delta, end)
        ends.append(x + end)
    winner = torch.stack([loss(end) for end in ends]).argmax(dim=0)
    return torch.stack(ends)[winner, torch.arange(len(x))], winner


def attack_msd(x: Tensor, grad: Of, loss: Of, balls: Sequence[Any], noise: Tensor) -> Tensor:
    """The view of each image; noise `[1, B, C, H, W]`: of n."""
    steps = max(ball.steps for ball in balls)
    delta, best = torch.zeros_like(x), torch.zeros_like(x)
    best_loss = torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for n in draws(noise[0], steps):
        g = grad(x + delta)
        tried = [step(delta, x, g, ball, n, ball.step_size / n) for ball in balls]
        losses = torch.stack([loss(x + one) for one in tried])
        delta = torch.stack(tried)[losses.argmax(dim=0), torch.arange(len(x))]
        larger = losses.amax(dim=0) > best_loss
        best = torch.where(larger[:, None, None, None], delta, best)
        best_loss = torch.maximum(best_loss, losses.amax(dim=0))
    return x + best
