"""Projected gradient ascent under l-inf, with the start noise given.

x' <- clip(x' + step_size * sign(d inner / d x'), x - eps, x + eps), then clip to [0, 1].
Inner objective: CE(z(x'), y) for at, alp and mart; KL(p(x) || p(x')) with p(x) constant for trades;
the boosted cross-entropy of p(x') for boosted. ard and iad attack as at does; rslad and act climb
KL(t || p(x')) with a teacher's t, from the start of trades.
Of images mixed of two, L(y) of a label is share L(y) + (1 - share) L(y_mixed).
Start: clip(x + eps * U(-1, 1), 0, 1) for at and alp; x + 0.001 * N(0, 1), unclipped, for trades,
mart and boosted.
Source: Madry et al. 2018, section 2.1; the starts are those of each method's published code.
Shapes: R restarts, B batch, C channels, H height, W width.
"""

import copy

import torch
from torch import Tensor, nn

from tests.reference.losses import boosted, cross_entropy, kl

GAUSSIAN_SCALE = 0.001
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def attack_copy(net: nn.Module, bn: str) -> nn.Module:
    """A copy in eval mode, its BatchNorm on running (bn="eval") or batch ("train") statistics.

    Being a copy, it leaves modes, gradients and running statistics of net alone.
    """
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, BATCH_NORMS):
            module.train({"eval": False, "train": True}[bn])
    return twin


def start(x: Tensor, method: str, eps: float, noise: Tensor) -> Tensor:
    """The first iterate; x in [0, 1] and noise are `[B, C, H, W]`."""
    if method in ("at", "alp", "ard", "iad"):
        return (x + eps * noise).clamp(0.0, 1.0)
    if method in ("trades", "mart", "boosted", "rslad", "act"):
        return x + GAUSSIAN_SCALE * noise
    raise ValueError(f"{method} has no attack")


def inner(
    method: str,
    z_adv: Tensor,
    z_clean: Tensor,
    y: Tensor,
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """What the attack ascends, per sample `[B]`; logits are `[B, classes]`."""
    if method in ("trades", "rslad", "act"):
        return kl(z_clean, z_adv)
    loss = boosted_cross_entropy if method == "boosted" else cross_entropy
    if y_mixed is None:
        return loss(z_adv, y)
    return share * loss(z_adv, y) + (1.0 - share) * loss(z_adv, y_mixed)


def boosted_cross_entropy(z_adv: Tensor, y: Tensor) -> Tensor:
    """The boosted cross-entropy of each image alone, `[B]`."""
    return torch.stack([boosted(z_adv[i : i + 1], y[i : i + 1])["bce"] for i in range(len(y))])


def ascend_linf(x_adv: Tensor, x: Tensor, grad: Tensor, eps: float, step_size: float) -> Tensor:
    """One step, as the header has it."""
    x_adv = x_adv + step_size * grad.sign()
    return torch.maximum(torch.minimum(x_adv, x + eps), x - eps).clamp(0.0, 1.0)


def pgd(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    method: str,
    eps: float,
    step_size: float,
    steps: int,
    noise: Tensor,
    bn: str = "eval",
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
    z_teacher: Tensor | None = None,
) -> Tensor:
    """The adversarial view `[B, C, H, W]` of x.

    x: images in [0, 1], `[B, C, H, W]`. eps, step_size: pixels in [0, 1]. bn: "eval" or "train".
    noise: `[R, B, C, H, W]`, U(-1, 1) for at and alp, N(0, 1) for the others.
    y_mixed, share: `[B]`, of images mixed of two; share in [0, 1].
    z_teacher: `[B, classes]`, what a teacher says of x, for rslad and act.
    Each restart runs all steps; each sample keeps the last iterate of the restart with the largest
    inner objective there, the earliest one among equals.
    """
    twin = attack_copy(net, bn)
    with torch.no_grad():
        z_clean = twin(x) if z_teacher is None else z_teacher
    ends, end_losses = [], []
    for noise_r in noise:
        x_adv = start(x, method, eps, noise_r)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            ascended = inner(method, twin(x_adv), z_clean, y, y_mixed, share)
            (grad,) = torch.autograd.grad(ascended.sum(), x_adv)
            x_adv = ascend_linf(x_adv.detach(), x, grad, eps, step_size)
        ends.append(x_adv)
        with torch.no_grad():
            end_losses.append(inner(method, twin(x_adv), z_clean, y, y_mixed, share))
    winner = torch.stack(end_losses).argmax(dim=0)  # the first among equals
    return torch.stack(ends)[winner, torch.arange(len(x), device=x.device)]
