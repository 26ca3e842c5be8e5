"""VGG with BatchNorm for small images (Simonyan & Zisserman 2014, arXiv 1409.1556).

One linear layer behind 512 channels, after kuangliu's pytorch-cifar; parameter names (features.N,
classifier) are those of its checkpoints. The poolings round sizes up, which at multiples of 32
pixels changes nothing, and lets images be smaller than 32.
"""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """x [B, channels, H, W] in [0, 1] -> logits [B, classes]; any H and W from 8 pixels up."""

    def __init__(self, depths: tuple[int, ...], classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, depth in zip(WIDTHS, depths, strict=True):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def vgg11(classes: int, channels: int) -> VGG:
    return VGG((1, 1, 2, 2, 2), classes, channels)


def vgg13(classes: int, channels: int) -> VGG:
    return VGG((2, 2, 2, 2, 2), classes, channels)


def vgg16(classes: int, channels: int) -> VGG:
    return VGG((2, 2, 3, 3, 3), classes, channels)


def vgg19(classes: int, channels: int) -> VGG:
    return VGG((2, 2, 4, 4, 4), classes, channels)
