"""The attack and the loss of Squeeze Training, image by image, by autograd.

Of {adv, clean, col}, U has the lowest and L the highest p_y; at the first step adv and col are
x + 0.001 N(0, 1). J = 1/2 [KL(sg p_L || p_U) + KL(sg p_U || p_L)]. Each step:
  adv' = clip(U + step_size * sign(dJ / dU)), col' = clip(L + step_size * sign(dJ / dL)),
clipped to [x - eps, x + eps], then to [0, 1]; or by another norm's step. BatchNorm normalises by
the batch of each forward.
As the public code has it: where no image of the batch has clean for U or L, adv' = clip(adv +
step_size * sign(dJ / dU)) and col' = clip(col + step_size * sign(dJ / dL)); roles as `roles` says.
Source: Li, Luo, et al., Squeeze Training for Adversarial Robustness, 2023, and its public code.
Shapes: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from tests.reference import attack
from tests.reference.attack import ascend_linf, attack_copy
from tests.reference.losses import roles, symmetric


def squeeze(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    noise: Tensor,
    start: str = "gaussian",
    bn: str = "train",
    move: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    official: bool = False,
) -> tuple[Tensor, Tensor]:
    """The adversarial and the collaborative view `[B, C, H, W]`; noise: `[2, B, C, H, W]`.

    move: where a step leads from a point of x's ball, by its gradient; None: the linf step.
    """
    move = move or partial(ascend_linf, eps=eps, step_size=step_size)
    twin = attack_copy(net, bn)
    adv, col = (attack.start(x, start, eps, noise_v) for noise_v in noise)
    for _ in range(steps):
        points = {"adv": adv, "clean": x, "col": col}
        points = {name: point.detach().requires_grad_(True) for name, point in points.items()}
        z = {name: twin(point) for name, point in points.items()}
        chosen = roles(z, y, official)
        moves = chosen
        if official and not any("clean" in names for names in chosen):
            moves = [("adv", "col")] * len(y)
        climbed = [
            symmetric(z[upper][i : i + 1], z[lower][i : i + 1]).sum()
            for i, (upper, lower) in enumerate(chosen)
        ]
        grads = torch.autograd.grad(
            torch.stack(climbed).sum(), list(points.values()), materialize_grads=True
        )
        grad = dict(zip(points, grads, strict=True))
        adv, col = (
            move(
                torch.stack([points[names[role]][i].detach() for i, names in enumerate(moves)]),
                x,
                torch.stack([grad[names[role]][i] for i, names in enumerate(chosen)]),
            )
            for role in range(2)
        )
    return adv, col


def untracked_forward(net: nn.Module, x: Tensor) -> Tensor:
    """Logits by statistics of the batch, which the running ones do not see."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    z = net(x)
    for norm in norms:
        norm.track_running_stats = True
    return z
