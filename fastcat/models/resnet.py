"""ResNets for small images (He et al. 2016, arXiv 1512.03385).

A 3x3 stem without pooling, four stages of strides 1, 2, 2, 2, global average pooling. Parameter
names (conv1, bn1, layer1..4, linear) are those of the checkpoints in circulation. LBGAT (Cui et al.
2021) has strides 1, 1, 2, 2 under the same names.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


def shortcut(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    """Identity where shapes agree, else 1x1 convolution and BatchNorm."""
    if stride == 1 and in_planes == planes:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
    )


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = shortcut(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.shortcut = shortcut(in_planes, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def stage(
    block: Callable[..., nn.Module], in_planes: int, out_planes: int, depth: int, stride: int
) -> nn.Sequential:
    """`depth` blocks in a row, of which the first strides and widens."""
    expansion: int = block.expansion  # type: ignore[attr-defined]
    first = block(in_planes, out_planes // expansion, stride)
    others = (block(out_planes, out_planes // expansion, 1) for _ in range(depth - 1))
    return nn.Sequential(first, *others)


class ResNet(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        classes: int,
        channels: int,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        e = block.expansion
        self.layer1 = stage(block, 64, 64 * e, depths[0], strides[0])
        self.layer2 = stage(block, 64 * e, 128 * e, depths[1], strides[1])
        self.layer3 = stage(block, 128 * e, 256 * e, depths[2], strides[2])
        self.layer4 = stage(block, 256 * e, 512 * e, depths[3], strides[3])
        self.linear = nn.Linear(512 * e, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


# under the names of ResNet, with maps of the first size in two stages
LBGAT_STRIDES = (1, 1, 2, 2)


def resnet18(classes: int, channels: int) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels)


def resnet34(classes: int, channels: int) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, channels)


def resnet50(classes: int, channels: int) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, channels)


def resnet101(classes: int, channels: int) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 23, 3), classes, channels)


def resnet18_lbgat(classes: int, channels: int) -> ResNet:
    """ResNet-18 of LBGAT: the second stage has no stride (Cui et al. 2021, arXiv 2011.11164)."""
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, channels, LBGAT_STRIDES)


def resnet34_lbgat(classes: int, channels: int) -> ResNet:
    """ResNet-34 of LBGAT: the second stage has no stride (Cui et al. 2021, arXiv 2011.11164)."""
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, channels, LBGAT_STRIDES)


def resnet50_lbgat(classes: int, channels: int) -> ResNet:
    """ResNet-50 of LBGAT: the second stage has no stride (Cui et al. 2021, arXiv 2011.11164)."""
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, channels, LBGAT_STRIDES)


def resnet101_lbgat(classes: int, channels: int) -> ResNet:
    """ResNet-101 of LBGAT: the second stage has no stride (Cui et al. 2021, arXiv 2011.11164)."""
    return ResNet(Bottleneck, (3, 4, 23, 3), classes, channels, LBGAT_STRIDES)
