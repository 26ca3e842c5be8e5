"""Wide residual networks with SiLU (Gowal et al. 2020, arXiv 2010.03593), from DeepMind.

Parameter names (init_conv, layer.0.block.0.batchnorm_0, ..., batchnorm, logits) are those of the
checkpoints of Rebuffi et al. 2021, of Rade's adversarial_robustness_pytorch and of Wang et al. 2023
(DM-Improves-AT), so is the padding: TensorFlow's SAME, which for stride 2 and images of even side
is one pixel at the right and one at the bottom. For odd sides theirs does not run and ours pads as
SAME does, all around. Theirs normalises by mean and std that are no part of the checkpoint: put
CIFAR-10's, (0.4914, 0.4822, 0.4465) and (0.2471, 0.2435, 0.2616), or those of the data that it was
trained on, in front. Not compared with a published checkpoint: none was at hand.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.models.wide_resnet import initialise

# TensorFlow's 0.99
MOMENTUM = 0.01


class SwishBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.strided = stride == 2
        padding = 0 if self.strided else 1
        self.batchnorm_0 = nn.BatchNorm2d(in_planes, momentum=MOMENTUM)
        self.conv_0 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=padding, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(planes, momentum=MOMENTUM)
        self.conv_1 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_planes != planes:
            self.shortcut = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm_0(x))
        # where the width changes, the shortcut too begins after the activation
        residual = x if self.shortcut is None else self.shortcut(out)
        if self.strided:
            out = F.pad(out, (x.shape[3] % 2, 1, x.shape[2] % 2, 1))
        return self.conv_1(F.silu(self.batchnorm_1(self.conv_0(out)))) + residual


class SwishGroup(nn.Module):
    def __init__(self, in_planes: int, planes: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [SwishBlock(in_planes, planes, stride)]
        blocks += [SwishBlock(planes, planes, 1) for _ in range(depth - 1)]
        self.block = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SwishWideResNet(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(self, depth: int, widening: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, *(planes * widening for planes in (16, 32, 64))]
        self.init_conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            SwishGroup(widths[0], widths[1], blocks, 1),
            SwishGroup(widths[1], widths[2], blocks, 2),
            SwishGroup(widths[2], widths[3], blocks, 2),
        )
        self.batchnorm = nn.BatchNorm2d(widths[3], momentum=MOMENTUM)
        self.logits = nn.Linear(widths[3], classes)
        initialise(self, self.logits)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
        return self.logits(F.adaptive_avg_pool2d(out, 1).flatten(1))


def wrn_28_10_swish(classes: int, channels: int) -> SwishWideResNet:
    """WideResNet-28-10 with SiLU (Gowal et al. 2020, arXiv 2010.03593)."""
    return SwishWideResNet(28, 10, classes, channels)


def wrn_34_20_swish(classes: int, channels: int) -> SwishWideResNet:
    """WideResNet-34-20 with SiLU (Gowal et al. 2020, arXiv 2010.03593)."""
    return SwishWideResNet(34, 20, classes, channels)


def wrn_70_16_swish(classes: int, channels: int) -> SwishWideResNet:
    """WideResNet-70-16 with SiLU (Gowal et al. 2020, arXiv 2010.03593)."""
    return SwishWideResNet(70, 16, classes, channels)
