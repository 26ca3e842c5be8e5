"""Networks with all that a frozen twin must fold, or must leave as it is, by name in NETWORKS."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.models import Normalize, make_model
from fastcat.models.mobilenet import SeparableBlock
from fastcat.models.mobilenet_v2 import InvertedBlock
from fastcat.models.wide_resnet import WideResNet
from fastcat.models.wide_resnet_swish import SwishWideResNet
from tests.harness.networks import CLASSES, tiny_net


def conv(planes: int, out: int, size: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(planes, out, size, padding=size // 2, **{"bias": False, **settings})


class Network(nn.Module):
    """8 planes in a body of one's own, between a convolution and a head."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(8, CLASSES)

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def network(body: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    return type("Own", (Network,), {"body": body})(**parts)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def chain(*parts: nn.Module) -> nn.Module:
    return network(lambda self, x: self.chain(x), chain=nn.Sequential(*parts))


def inplace_residual(self: Any, x: Tensor) -> Tensor:
    out = self.bn(self.conv(x))
    out += x
    return self.act(out)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: make_model("resnet18", CLASSES, 3),
    "resnet50": lambda: make_model("resnet50", CLASSES, 3),
    "preactresnet18": lambda: make_model("preactresnet18", CLASSES, 3),
    "wrn-10-2": lambda: WideResNet(10, 2, CLASSES, 3),
    "swish-10-1": lambda: SwishWideResNet(10, 1, CLASSES, 3),
    "separable": lambda: chain(SeparableBlock(8, 8, 2), InvertedBlock(8, 8, 2, 1)),
    "normalised": lambda: nn.Sequential(Normalize((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)), tiny_net(0)),
    "smooth": lambda: tiny_net(0, nn.SiLU),
    "leaky": lambda: tiny_net(0, lambda: nn.LeakyReLU(0.3)),
    "biases": lambda: chain(conv(8, 8, bias=True), nn.BatchNorm2d(8), nn.ReLU()),
    "biases alone": lambda: chain(conv(8, 8, bias=True), nn.ReLU(), conv(8, 8, bias=True)),
    "in place": lambda: chain(
        conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 8), nn.ReLU(inplace=True)
    ),
    "residual in place": lambda: network(
        inplace_residual, conv=conv(8, 8), bn=nn.BatchNorm2d(8), act=nn.ReLU(inplace=True)
    ),
    "dropout": lambda: chain(conv(8, 8), nn.Dropout2d(0.5), nn.BatchNorm2d(8), nn.Dropout(0.5)),
    "functional dropout": lambda: network(
        lambda self, x: F.dropout(self.conv(x), 0.5, self.training), conv=conv(8, 8)
    ),
    "grouped and dilated": lambda: chain(
        conv(8, 8, groups=4), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, dilation=2), nn.ReLU()
    ),
    "strided": lambda: chain(conv(8, 8, stride=2), nn.BatchNorm2d(8), conv(8, 8, 1, stride=2)),
    "padded by text": lambda: chain(
        nn.Conv2d(8, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "padded by reflection": lambda: chain(
        conv(8, 8, padding_mode="reflect"), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "normalised first": lambda: chain(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.ReLU()),
    "normalised twice": lambda: chain(conv(8, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)),
    "two convolutions in a sum": lambda: network(
        lambda self, x: F.relu(self.bn(self.a(x)) + self.b(x)),
        a=conv(8, 8), b=conv(8, 8, 1), bn=nn.BatchNorm2d(8),
    ),
    "two normalised in a sum": lambda: network(
        lambda self, x: torch.add(self.bn(self.a(x)), self.bm(self.b(x))).relu(),
        a=conv(8, 8), b=conv(8, 8, 1), bn=nn.BatchNorm2d(8), bm=nn.BatchNorm2d(8),
    ),
    "a sum of three": lambda: network(
        lambda self, x: F.relu(self.a(x) + self.b(x) + x), a=conv(8, 8), b=conv(8, 8)
    ),
    "a sum with itself": lambda: network(
        lambda self, x: (lambda z: F.relu(z + z))(self.bn(self.a(x))),
        a=conv(8, 8), bn=nn.BatchNorm2d(8),
    ),
    "a sum with a weight": lambda: network(
        lambda self, x: torch.add(x, self.a(x), alpha=3), a=conv(8, 8)
    ),
    "a sum with a number": lambda: network(lambda self, x: F.relu(self.a(x) + 0.5), a=conv(8, 8)),
    "a sum of other shapes": lambda: network(
        lambda self, x: self.a(x) + x.mean((2, 3), keepdim=True), a=conv(8, 8)
    ),
    "a sum that grows": lambda: network(
        lambda self, x: self.a(x.mean((2, 3), keepdim=True)) + x, a=conv(8, 8, 1)
    ),
    "output used twice": lambda: network(
        lambda self, x: (lambda z: self.bn(z).relu() * z.sigmoid())(self.a(x)),
        a=conv(8, 8), bn=nn.BatchNorm2d(8),
    ),
    "normalised output used twice": lambda: network(
        lambda self, x: (lambda z: F.relu(z) + 0.1 * z)(self.bn(self.a(x))),
        a=conv(8, 8), bn=nn.BatchNorm2d(8),
    ),
    "convolution used twice": lambda: network(
        lambda self, x: self.bn(self.a(F.relu(self.a(x)))), a=conv(8, 8), bn=nn.BatchNorm2d(8)
    ),
    "both used twice": lambda: network(
        lambda self, x: self.bn(self.a(self.bn(self.a(x)).relu())),
        a=conv(8, 8), bn=nn.BatchNorm2d(8),
    ),
    "without affine": lambda: chain(conv(8, 8), nn.BatchNorm2d(8, affine=False), nn.ReLU()),
    "without affine, first": lambda: chain(nn.BatchNorm2d(8, affine=False), nn.ReLU(), conv(8, 8)),
    "without statistics": lambda: chain(
        conv(8, 8), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()
    ),
    "other norms": lambda: chain(conv(8, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.InstanceNorm2d(8)),
    "its own eps": lambda: chain(conv(8, 8), nn.BatchNorm2d(8, eps=0.5), nn.ReLU()),
    "transposed": lambda: chain(
        nn.ConvTranspose2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    ),
    "an activation called relu": lambda: network(
        lambda self, x: self.relu(self.bn(self.a(x))),
        a=conv(8, 8), bn=nn.BatchNorm2d(8), relu=nn.LeakyReLU(0.01),
    ),
    "a module called add": lambda: network(
        lambda self, x: self.add(self.a(x)), a=conv(8, 8), add=Doubled()
    ),
    "arguments by name": lambda: network(
        lambda self, x: self.bn(input=self.a(input=x)), a=conv(8, 8), bn=nn.BatchNorm2d(8)
    ),
    "parametrised": lambda: chain(
        nn.utils.parametrizations.weight_norm(conv(8, 8)), nn.BatchNorm2d(8), nn.ReLU()
    ),
    "weights by a hook": lambda: chain(
        nn.utils.spectral_norm(conv(8, 8)), nn.BatchNorm2d(8), nn.ReLU()
    ),
}  # fmt: skip
