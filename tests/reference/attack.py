"""Projected gradient ascent under l-inf, with the start noise given.

x' <- clip(x' + step_size * sign(d inner / d x'), x - eps, x + eps), then clip to [0, 1].
PGD objective: CE(z(x'), y) for at, alp and mart; KL(p(x) || p(x')) with p(x) constant for trades;
the boosted cross-entropy of p(x') for boosted. ard and iad attack as at does; rslad and act climb
KL(t || p(x')) with a teacher's t, from the start of trades.
Of images mixed of two, L(y) of a label is share L(y) + (1 - share) L(y_mixed).
Start: "uniform" clip(x + eps * U(-1, 1), 0, 1) for at, alp, ard and iad; "gaussian"
x + 0.001 * N(0, 1) for the others; "unclipped" x + eps * U(-1, 1), and "zero" x for none.
BatchNorm: "eval" by the running statistics, "train" by those of the batch; "moving" likewise, and
every forward of the attack moves the running ones. Those are K, of each restart's last iterate one
more where there are several, for at also where there is one, and of x one where the own KL is
climbed.
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
    """A copy in eval mode, its BatchNorm on running (bn="eval") or batch statistics.

    Being a copy, it leaves modes, gradients and running statistics of net alone.
    """
    twin = copy.deepcopy(net).eval().requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, BATCH_NORMS):
            module.train({"eval": False, "train": True, "moving": True}[bn])
    return twin


@torch.no_grad()
def take_statistics(net: nn.Module, twin: nn.Module) -> None:
    """The running statistics of a copy that has lived."""
    for mine, its in zip(net.buffers(), twin.buffers(), strict=True):
        mine.copy_(its)


START = dict.fromkeys(("at", "alp", "ard", "iad"), "uniform")
START |= dict.fromkeys(("trades", "mart", "boosted", "st", "rslad", "act"), "gaussian")


def start(x: Tensor, kind: str, eps: float, noise: Tensor) -> Tensor:
    """The first iterate; x in [0, 1] and noise are `[B, C, H, W]`."""
    return {
        "uniform": (x + eps * noise).clamp(0.0, 1.0),
        "unclipped": x + eps * noise,
        "gaussian": x + GAUSSIAN_SCALE * noise,
        "zero": x,
    }[kind]


def inner(
    method: str,
    z_adv: Tensor,
    z_clean: Tensor | None,
    y: Tensor,
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """What the attack ascends, per sample `[B]`; logits are `[B, classes]`."""
    if z_clean is not None:
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
    first: str | None = None,
) -> Tensor:
    """The adversarial view `[B, C, H, W]` of x.

    x: images in [0, 1], `[B, C, H, W]`. eps, step_size: pixels in [0, 1]. bn, first: mode and start
    as in the header, first None for the method's.
    noise: `[R, B, C, H, W]`, U(-1, 1) or for a Gaussian start N(0, 1).
    y_mixed, share: `[B]`, of images mixed of two; share in [0, 1].
    z_teacher: `[B, classes]`, what a teacher says of x, for rslad and act.
    Each restart runs all steps; each sample keeps the last iterate of the restart with the largest
    inner objective there, the earliest one among equals.
    """
    twin = attack_copy(net, bn)
    z_clean = z_teacher
    if method in ("trades", "rslad", "act") and z_clean is None:
        with torch.no_grad():
            z_clean = twin(x)
    ends, end_losses = [], []
    for noise_r in noise:
        x_adv = start(x, first or START[method], eps, noise_r)
        for _ in range(steps):
            x_adv = x_adv.detach().requires_grad_(True)
            ascended = inner(method, twin(x_adv), z_clean, y, y_mixed, share)
            (grad,) = torch.autograd.grad(ascended.sum(), x_adv)
            x_adv = ascend_linf(x_adv.detach(), x, grad, eps, step_size)
        ends.append(x_adv)
        if len(noise) > 1 or method == "at":
            with torch.no_grad():
                end_losses.append(inner(method, twin(x_adv), z_clean, y, y_mixed, share))
    if bn == "moving":
        take_statistics(net, twin)
    if len(noise) == 1:
        return x_adv
    winner = torch.stack(end_losses).argmax(dim=0)  # the first among equals
    return torch.stack(ends)[winner, torch.arange(len(x), device=x.device)]
