"""Pre-activation ResNet-18 for small images (He et al. 2016, arXiv 1603.05027), in four variants.

Public code differs in two things, under the same parameter names. Where a block changes the shape,
its shortcut begins at the activated input (kuangliu's pytorch-cifar, Rice et al. 2020, Wu et al.
2020), or at the input itself (Wong et al. 2020, de Jorge et al. 2022, Andriushchenko & Flammarion
2020). A last BatchNorm `bn` and ReLU precede the pooling (Rice, Wu, Wong and de Jorge), or nothing
does (kuangliu; Maini et al. 2020; Andriushchenko & Flammarion).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.models.resnet import stage


class PreActBlock(nn.Module):
    expansion = 1
    # whether the shortcut begins before the activation
    raw_shortcut = False

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        residual = x
        if self.shortcut is not None:
            residual = self.shortcut(x if self.raw_shortcut else out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + residual


class RawShortcutBlock(PreActBlock):
    raw_shortcut = True


class PreActResNet(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        classes: int,
        channels: int,
        block: type[PreActBlock] = PreActBlock,
        last_norm: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.layer1 = stage(block, 64, 64, depths[0], 1)
        self.layer2 = stage(block, 64, 128, depths[1], 2)
        self.layer3 = stage(block, 128, 256, depths[2], 2)
        self.layer4 = stage(block, 256, 512, depths[3], 2)
        self.bn = nn.BatchNorm2d(512) if last_norm else None
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def preactresnet18(classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 of Rice et al. and AWP: shortcuts after the activation, a last BatchNorm."""
    return PreActResNet((2, 2, 2, 2), classes, channels)


def preactresnet18_fast_at(classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 of Fast-AT and N-FGSM: shortcuts before the activation, a last BatchNorm."""
    return PreActResNet((2, 2, 2, 2), classes, channels, RawShortcutBlock)


def preactresnet18_nobn(classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 of kuangliu and MSD: shortcuts after the activation, no last BatchNorm."""
    return PreActResNet((2, 2, 2, 2), classes, channels, last_norm=False)


def preactresnet18_fast_at_nobn(classes: int, channels: int) -> PreActResNet:
    """PreActResNet-18 of GradAlign: shortcuts before the activation, no last BatchNorm."""
    return PreActResNet((2, 2, 2, 2), classes, channels, RawShortcutBlock, last_norm=False)
