"""Steps of methods that train one network alone, written from their formulas, in float64.

Shapes: x [B, C, H, W] in [0, 1], y [B]; noise U(-1, 1) like x. Nothing of the package is used.
"""

import torch
from torch import Tensor, nn

from tests.reference.attack import attack_copy
from tests.reference.losses import cross_entropy, kl


def gradient(net: nn.Module, x: Tensor, y: Tensor, loss: str = "ce") -> Tensor:
    """d loss / d x of the sum over the images; loss: "ce", or "margin", max_{k != y} z_k - z_y."""
    x = x.detach().requires_grad_()
    z = net(x)
    if loss == "ce":
        total = cross_entropy(z, y).sum()
    else:
        rows = torch.arange(len(y))
        others = z.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), -torch.inf)
        total = (others.amax(1) - z[rows, y]).sum()
    return torch.autograd.grad(total, x)[0]


def fgsm_rs(net: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float) -> Tensor:
    """delta = U(-eps, eps) in the box; delta + 1.25 eps sign(g), clipped to eps, then to the box.

    Wong et al., Fast is Better than Free, 2020; net in the mode that is wanted.
    """
    start = (x + eps * noise).clamp(0, 1)
    delta = start - x + 1.25 * eps * gradient(net, start, y).sign()
    return (x + delta.clamp(-eps, eps)).clamp(0, 1)


def n_fgsm(net: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float) -> Tensor:
    """eta = U(-2 eps, 2 eps) in the box; eta + eps sign(g), clipped to the box alone.

    De Jorge et al., Make Some Noise, 2022.
    """
    start = (x + 2 * eps * noise).clamp(0, 1)
    return (start + eps * gradient(net, start, y).sign()).clamp(0, 1)


def pgd(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    eps: float,
    step: float,
    steps: int,
    loss: str,
) -> Tensor:
    """PGD from a uniform start on the running statistics."""
    twin = attack_copy(net, "eval")
    x_adv = (x + eps * noise).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv + step * gradient(twin, x_adv, y, loss).sign()
        x_adv = torch.maximum(torch.minimum(x_adv, x + eps), x - eps).clamp(0, 1)
    return x_adv


def pgd_cw_loss(z_adv: Tensor, z_cw: Tensor, y: Tensor, alpha: float) -> dict[str, Tensor]:
    """alpha [CE(a) + CE(c)] + (1 - alpha) [KL(sg c || a) + KL(sg a || c)], means of them."""
    ce = cross_entropy(z_adv, y) + cross_entropy(z_cw, y)
    guidance = kl(z_cw.detach(), z_adv) + kl(z_adv.detach(), z_cw)
    return {"ce": alpha * ce.sum() / len(y), "kl": (1 - alpha) * guidance.sum() / len(y)}


def free_delta(delta: Tensor, grad: Tensor, x: Tensor, eps: float) -> Tensor:
    """delta + eps sign(g), clipped to eps, then so that x + delta is in the box.

    x: of B <= len(delta) images, whose places in delta move.

    Shafahi et al., Adversarial Training for Free!, 2019, as Wong et al. 2020 run it.
    """
    moved = (delta[: len(x)] + eps * grad.sign()).clamp(-eps, eps)
    return torch.cat([(x + moved).clamp(0, 1) - x, delta[len(x) :]])
