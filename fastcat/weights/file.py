"""fastcat's own weight files: safetensors whose header says how to build the network."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.files import write_atomically
from fastcat.loaders.class_names import match
from fastcat.loaders.dataset import Dataset
from fastcat.models import make_model


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weight file says of itself: how to build the network and where it comes from.

    peer: name in its run, as "0-trades"
    arch: architecture, as `make_model` takes it
    data, data_digest: name and exact content of the data set
    classes: names, in the order of the logits
    channels: of the images
    mean, std: normalisation inside the model, by channel. None: there is none
    threats: the threat models that it was validated under, as `parse_threats` reads them
    epoch: finished epochs
    selected: how this state was chosen: "last", "best on val", "best on test"
    """

    peer: str
    arch: str
    data: str
    classes: tuple[str, ...]
    channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    threats: str
    epoch: int
    selected: str
    data_digest: str | None = None

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        normalize = None if self.mean is None or self.std is None else (self.mean, self.std)
        return make_model(self.arch, len(self.classes), self.channels, normalize)


def save_weights(path: Path, tensors: dict[str, Tensor], info: WeightsInfo) -> None:
    """Write a network's parameters and buffers as safetensors."""
    # copies: parameters are views of one buffer, which safetensors refuses
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(plain, {"fastcat": json.dumps(asdict(info))})
    write_atomically(path, lambda file: file.write(data))


def load_weights(path: Path) -> tuple[nn.Module, WeightsInfo]:
    """The network of a weight file, in eval mode on the CPU, and what the file says of itself.

    Raises InputError for a file that is missing, damaged or not fastcat's.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("fastcat")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InputError(f"there is no weight file {path}") from error
    except (safetensors.SafetensorError, OSError) as error:
        if path.suffix in (".pt", ".pth"):
            raise InputError(
                f"{path} does not say which network it holds: type --arch, as --arch wrn-34-10"
            ) from error
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error
    if header is None:
        raise InputError(
            f"{path} was not written by fastcat: say which network it is, as --arch wrn-34-10"
        )
    try:
        fields = json.loads(header)
        for name in ("classes", "mean", "std"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        info = WeightsInfo(**fields)
        model = info.build()
        model.load_state_dict(tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} does not say rightly which network it holds: {reason}") from error
    return model.eval(), info


def outputs_of(file: Path, info: WeightsInfo, dataset: Dataset) -> np.ndarray:
    """Of each class of the data the network's output, int64, as `match` finds it.

    Raises InputError when the network was trained on other classes or channels.
    """
    channels = dataset.image_shape[2]
    if info.channels != channels:
        raise InputError(
            f"{file} is for images of {info.channels} channels, but those of {dataset.name} have "
            f"{channels}: give others"
        )
    return match(dataset.classes, dataset.name, info.classes, str(file))
