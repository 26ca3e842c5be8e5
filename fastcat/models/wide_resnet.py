"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv 1605.07146), pre-activation.

Parameter names are those of the adversarial-training literature's checkpoints (Zhang et al. 2019),
but for the unused `sub_block1` that those carry.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.convShortcut: nn.Conv2d | None = None
        if in_planes != planes:
            self.convShortcut = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        # where the width changes, the shortcut too begins after the activation
        residual = x if self.convShortcut is None else self.convShortcut(out)
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + residual


class WideGroup(nn.Module):
    def __init__(self, in_planes: int, planes: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [WideBlock(in_planes, planes, stride)]
        blocks += [WideBlock(planes, planes, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def initialise(net: nn.Module, head: nn.Linear) -> None:
    """Convolutions normal with variance 2 / fan-out, the head without bias, as in all of them."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
    nn.init.zeros_(head.bias)


class WideResNet(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(self, depth: int, widening: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, *(planes * widening for planes in (16, 32, 64))]
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.block1 = WideGroup(widths[0], widths[1], blocks, 1)
        self.block2 = WideGroup(widths[1], widths[2], blocks, 2)
        self.block3 = WideGroup(widths[2], widths[3], blocks, 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], classes)
        initialise(self, self.fc)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        out = F.relu(self.bn1(out))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


def wrn_28_10(classes: int, channels: int) -> WideResNet:
    """WideResNet-28-10, pre-activation (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""
    return WideResNet(28, 10, classes, channels)


def wrn_34_10(classes: int, channels: int) -> WideResNet:
    """WideResNet-34-10, pre-activation (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""
    return WideResNet(34, 10, classes, channels)


def wrn_34_20(classes: int, channels: int) -> WideResNet:
    """WideResNet-34-20, pre-activation (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""
    return WideResNet(34, 20, classes, channels)


def wrn_70_16(classes: int, channels: int) -> WideResNet:
    """WideResNet-70-16, pre-activation (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""
    return WideResNet(70, 16, classes, channels)
