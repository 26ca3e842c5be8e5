"""What an attack could disturb in a network, and a network in which all of it can be told."""

from typing import Any

import torch
from torch import nn

from tests.harness.networks import seeded, tiny_net


def mixed_net() -> nn.Module:
    """Modules in different modes, frozen parameters, old gradients, a BatchNorm without moments."""
    net = tiny_net(0)
    net.bn2.eval()
    net.act.eval()
    net.conv3.weight.requires_grad_(False)
    net.bn3.bias.requires_grad_(False)
    for p in (net.conv1.weight, net.linear.bias):
        p.grad = torch.rand(p.shape, generator=seeded())
    without_statistics = nn.BatchNorm2d(3, track_running_stats=False)
    return nn.Sequential(nn.Dropout(0.2).eval(), without_statistics, net)


def everything(net: nn.Module) -> dict[str, Any]:
    """All that an attack could disturb, by name."""
    found: dict[str, Any] = {f"state {k}": v.clone() for k, v in net.state_dict().items()}
    for name, p in net.named_parameters():
        found[f"grad {name}"] = None if p.grad is None else p.grad.clone()
        found[f"requires_grad {name}"] = p.requires_grad
    for name, module in net.named_modules():
        found[f"training {name}"] = module.training
        found[f"tracks {name}"] = getattr(module, "track_running_stats", None)
        found[f"hooks {name}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return found
