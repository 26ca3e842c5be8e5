"""Adversarial weight perturbation, with the gradient in closed form.

v = gamma ||w|| g / ||g||, tensor by tensor, for weights of more than one dimension, g the
gradient at w. The step is taken at w + v, and v is subtracted from what it leaves.
Source: Wu, Xia, Wang, Adversarial Weight Perturbation Helps Robust Generalization, 2020, Eq. 10,
and the authors' code, which leaves out BatchNorm and biases.
"""

import torch
from torch import Tensor, nn


def perturbation(net: nn.Module, grads: dict[str, Tensor], gamma: float) -> dict[str, Tensor]:
    """v by name of parameter, for convolutions and linear layers alone."""
    found = {}
    for name, w in net.named_parameters():
        length = grads[name].square().sum().sqrt() if name in grads else 0.0
        if w.dim() > 1 and length > 0:
            size = w.detach().square().sum().sqrt()
            found[name] = gamma * size * grads[name] / length
    return found


@torch.no_grad()
def add(net: nn.Module, v: dict[str, Tensor], factor: float) -> None:
    """w <- w + factor v, in place."""
    for name, w in net.named_parameters():
        if name in v:
            w += factor * v[name]
