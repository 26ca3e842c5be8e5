"""Networks by name: `make_model("resnet18", classes=10, channels=3)`."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastcat.errors import InputError, nearest
from fastcat.models.preact_resnet import preactresnet18
from fastcat.models.resnet import resnet18, resnet34, resnet50
from fastcat.models.wide_resnet import wrn_34_10

ARCHS: dict[str, Callable[[int, int], nn.Module]] = {
    make.__name__.replace("_", "-"): make
    for make in (resnet18, resnet34, resnet50, preactresnet18, wrn_34_10)
}
_ALIASES = {"prn18": "preactresnet18", "wideresnet3410": "wrn-34-10", "wrn3410": "wrn-34-10"}


def canonical_arch(name: str) -> str:
    """The name in ARCHS for any common spelling: ResNet18, PreAct-ResNet-18, PRN18.

    Raises InputError for a name that is not known.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    plain = _ALIASES.get(plain, plain)
    if plain not in ARCHS:
        raise InputError(f"unknown architecture {name!r}: {nearest(plain, ARCHS)}")
    return plain


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

    `normalize` = (mean, std) per channel puts a Normalize in front; the network's own parameters
    are then named `net.*`. Raises InputError for an unknown architecture.
    """
    net = ARCHS[canonical_arch(arch)](classes, channels)
    if normalize is None:
        return net
    return nn.Sequential(OrderedDict(normalize=Normalize(*normalize), net=net))
