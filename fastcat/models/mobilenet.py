"""MobileNet for small images (Howard et al. 2017, arXiv 1704.04861).

Without a stride in the stem and in the first stage, after kuangliu's pytorch-cifar, as in the
experiments of CAT (Liu et al. 2023); parameter names (conv1, bn1, layers.N, linear) are its.
"""

import torch.nn.functional as F
from torch import Tensor, nn

# width and stride of each block
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1),
    (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 across them."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_planes, in_planes, 3, stride=stride, padding=1, groups=in_planes, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv2 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class MobileNet(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        widths = [32, *(width for width, _ in BLOCKS)]
        self.layers = nn.Sequential(
            *(
                SeparableBlock(before, width, stride)
                for before, (width, stride) in zip(widths, BLOCKS, strict=False)
            )
        )
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def mobilenet(classes: int, channels: int) -> MobileNet:
    return MobileNet(classes, channels)
