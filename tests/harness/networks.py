"""A small network with all that makes parity hard: three BatchNorms, a residual, a pooling.

And images for it, and networks whose BatchNorm has lived.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.attacks.threat import ThreatModel
from fastcat.models import make_model

CLASSES = 5


class TinyNet(nn.Module):
    """x [B, 3, H, W] -> logits [B, CLASSES]; with 12 channels 3.5 thousand parameters."""

    def __init__(self, activation: type[nn.Module], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 16, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.linear = nn.Linear(16, CLASSES)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        out = self.act(self.bn2(self.conv2(out)) + out)
        out = self.act(self.bn3(self.conv3(F.avg_pool2d(out, 2))))
        return self.linear(out.mean((2, 3)))


def tiny_net(seed: int, activation: type[nn.Module] = nn.ReLU, width: int = 12) -> TinyNet:
    """A float32 TinyNet in train mode; none of its BatchNorm statistics or scales is 0 or 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TinyNet(activation, width)
        for norm in (net.bn1, net.bn2, net.bn3):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.0, 0.2)
            nn.init.normal_(norm.running_mean, 0.0, 0.2)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(net.linear.weight, 0.0, 1.0)
    return net


def images(seed: int, size: int, side: int = 8, channels: int = 3) -> tuple[Tensor, Tensor]:
    """x [size, channels, side, side] in [0, 1], some pixels at its ends, and labels y [size]."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.2 * torch.rand(size, channels, side, side, generator=generator) - 0.1).clamp(0, 1)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def mixing(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Labels mixed in and shares [size], among them 0, 1 and a label that is mixed with itself."""
    generator = torch.Generator().manual_seed(300 + seed)
    share = torch.rand(size, generator=generator)
    share[:2] = torch.arange(2)[:size]
    return torch.randint(CLASSES, (size,), generator=generator), share


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lived(arch: str) -> nn.Module:
    """In eval mode, for 3 channels and 10 classes, its BatchNorm with statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(make_model(arch, 10, 3))


def randomised(net: nn.Module) -> nn.Module:
    """In eval mode, its BatchNorm with statistics of its own."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def noise_of(threat: ThreatModel, x: Tensor, start: Any) -> Tensor:
    return torch.stack([threat.draw_noise(start, x, seeded(seed)) for seed in range(2)])
