"""What names and shapes of a checkpoint leave open, clean images tell.

Public code has several functions under the same parameter names (`fastcat/models/preact_resnet.py`,
`resnet.py`), and some normalises in its loader, of which a file says nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastcat.guard import answers
from fastcat.loaders.loader import Loader
from fastcat.models import normalized
from fastcat.weights.file import WeightsInfo
from fastcat.weights.foreign import lookalikes

# enough to tell a network from another function of its weights
IMAGES = 256

Statistics = tuple[Sequence[float], Sequence[float]]


@torch.no_grad()
def recognise(
    model: nn.Module,
    info: WeightsInfo,
    loader: Loader,
    device: torch.device,
    statistics: Statistics,
    say: Callable[[str], object],
) -> tuple[nn.Module, WeightsInfo]:
    """The network and its description, as the architecture that classifies most images correctly.

    Several architectures have weights of the same names and shapes; only the usual one of them
    gives way to another. An architecture that was typed by another name stays.
    model, info: network and description, as they were loaded
    loader: images that all candidates classify
    statistics: mean and standard deviation of the data's channels, by which code may normalise
    say: gets a line about each choice, about a normalisation before the network that would be much
        better, and about a network near chance
    """
    x, y = _sample(loader)
    n, channels = len(y), info.channels
    alike = lookalikes(info.arch, len(info.classes), channels)
    usual_norms: list[Statistics] = []
    if info.mean is None:
        usual_norms = [statistics, ((0.5,) * channels, (0.5,) * channels)]
    networks, plain, behind = {}, {}, {}
    for name in alike:
        networks[name] = model
        if name != info.arch:
            networks[name] = replace(info, arch=name).build().eval()
            networks[name].load_state_dict(model.state_dict())
        network = networks[name].to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        plain[name] = _right(network, x, y)
        behind[name] = [_right(normalized(network, *norm).to(device), x, y) for norm in usual_norms]
    most = {name: max(plain[name], *behind[name], 0) for name in alike}
    # of two counts of the same n images, far more than chance sets them apart
    margin = 2 * math.sqrt(n)
    chosen = max(alike, key=lambda name: most[name])
    if info.arch != alike[0] or most[chosen] <= most[info.arch] + margin:
        chosen = info.arch
    if len(alike) > 1:
        counts = " and ".join(str(most[name]) for name in alike)
        say(
            f"names and shapes fit {' and '.join(alike)}, right on {counts} of {n} clean images: "
            f"taken as {chosen}"
        )
    if most[chosen] <= n / len(info.classes) + math.sqrt(n):
        say(
            f"right on {most[chosen]} of {n} clean images, near chance: is it another "
            "architecture, normalisation (--mean, --std) or order of classes?"
        )
    elif most[chosen] > plain[chosen] + margin:
        mean, std = usual_norms[behind[chosen].index(most[chosen])]
        flags = f"--mean {_typed(mean)} --std {_typed(std)}"
        say(
            f"right on {plain[chosen]} of {n} clean images, and on {most[chosen]} that are "
            f"normalised first: if its code does so, type {flags}"
        )
    return networks[chosen], replace(info, arch=chosen)


def _sample(loader: Loader) -> tuple[Tensor, Tensor]:
    """The first images and labels of the loader."""
    xs, ys, n = [], [], 0
    for batch in loader:
        xs.append(batch.x)
        ys.append(batch.y)
        n += len(batch.y)
        if n >= IMAGES:
            break
    return torch.cat(xs)[:IMAGES], torch.cat(ys)[:IMAGES]


def _right(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many images the network classifies correctly; logits that are no numbers are wrong."""
    z = torch.cat([network(part) for part in x.split(64)])
    return int((answers(z) == y).sum())


def _typed(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
