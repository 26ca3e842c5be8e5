"""MobileNetV2 for small images (Sandler et al. 2018, arXiv 1801.04381).

Without a stride in the stem and in the second stage, after kuangliu's pytorch-cifar; parameter
names (conv1, bn1, layers.N, conv2, bn2, linear) are its. Unlike the paper's it has ReLU in place of
ReLU6, and a 1x1 convolution in the shortcut where only the width changes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.models.resnet import shortcut

# expansion, width, blocks and first stride of each stage
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedBlock(nn.Module):
    """1x1 to more channels, 3x3 of each alone, 1x1 back without an activation."""

    def __init__(self, in_planes: int, planes: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * in_planes
        self.conv1 = nn.Conv2d(in_planes, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, stride=stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = nn.Conv2d(wide, planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.residual = stride == 1
        self.shortcut = shortcut(in_planes, planes, 1) if self.residual else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.residual else out


class MobileNetV2(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, before = [], 32
        for expansion, width, depth, stride in STAGES:
            for i in range(depth):
                blocks.append(InvertedBlock(before, width, expansion, 1 if i else stride))
                before = width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(before, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def mobilenetv2(classes: int, channels: int) -> MobileNetV2:
    return MobileNetV2(classes, channels)
