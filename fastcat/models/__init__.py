"""Networks by name: `make_model("resnet18", classes=10, channels=3)`."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastcat.errors import InputError, nearest
from fastcat.models.external import build_external, find_external
from fastcat.models.mobilenet import mobilenet
from fastcat.models.mobilenet_v2 import mobilenetv2
from fastcat.models.preact_resnet import (
    preactresnet18,
    preactresnet18_fast_at,
    preactresnet18_fast_at_nobn,
    preactresnet18_nobn,
)
from fastcat.models.resnet import (
    resnet18,
    resnet18_lbgat,
    resnet34,
    resnet34_lbgat,
    resnet50,
    resnet50_lbgat,
    resnet101,
    resnet101_lbgat,
)
from fastcat.models.vgg import vgg11, vgg13, vgg16, vgg19
from fastcat.models.wide_resnet import wrn_28_10, wrn_34_10, wrn_34_20, wrn_70_16
from fastcat.models.wide_resnet_swish import wrn_28_10_swish, wrn_34_20_swish, wrn_70_16_swish

# of names and shapes that are equal, the usual one stands first
ARCHS: dict[str, Callable[[int, int], nn.Module]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        *(resnet18, resnet34, resnet50, resnet101),
        *(resnet18_lbgat, resnet34_lbgat, resnet50_lbgat, resnet101_lbgat),
        *(preactresnet18, preactresnet18_fast_at),
        *(preactresnet18_nobn, preactresnet18_fast_at_nobn),
        *(wrn_28_10, wrn_34_10, wrn_34_20, wrn_70_16),
        *(wrn_28_10_swish, wrn_34_20_swish, wrn_70_16_swish),
        *(vgg11, vgg13, vgg16, vgg19, mobilenet, mobilenetv2),
    )
}
# what stands for what in names without - and _
_SYNONYMS = {"wideresnet": "wrn", "prn18": "preactresnet18", "silu": "swish"}


def canonical_arch(name: str) -> str:
    """The name in ARCHS for any common spelling: ResNet18, PreAct-ResNet-18, PRN18, VGG16-BN.

    A name with a colon is someone else's, see `find_external`, and stays as it is. Raises
    InputError for a name that leads nowhere.
    """
    if ":" in name:
        find_external(name)
        return name
    plain = _plain(name)
    for synonym, word in _SYNONYMS.items():
        plain = plain.replace(synonym, word)
    if plain.startswith("vgg"):
        plain = plain.removesuffix("bn")
    known = {_plain(arch): arch for arch in ARCHS}
    if plain not in known:
        raise InputError(f"unknown architecture {name!r}: {nearest(plain, ARCHS)}")
    return known[plain]


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model: attacks see pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def make_model(
    arch: str,
    classes: int,
    channels: int,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> nn.Module:
    """A freshly initialised network, drawn from torch's global generator.

    `normalize` = (mean, std) per channel puts a Normalize in front. Raises InputError for an
    architecture that is unknown, or cannot be built for these classes and channels.
    """
    arch = canonical_arch(arch)
    net = build_external(arch, classes, channels) if ":" in arch else ARCHS[arch](classes, channels)
    return net if normalize is None else normalized(net, *normalize)


def normalized(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network with a Normalize in front; its own parameters are then named `net.*`."""
    return nn.Sequential(OrderedDict(normalize=Normalize(mean, std), net=net))
