"""Checkpoints and weight files: atomic, checksummed, and free of code.

A checkpoint (checkpoints/last.pt, the one before it as previous.pt, one to roll back to as good.pt)
is a torch archive of tensors and plain values with all that resuming needs; its CRC-32 sums are
checked before it is read, and it is read with weights_only=True. Weights alone are safetensors
whose header says how to build the network.
"""

import json
import os
import pickle
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fastcat.errors import InputError
from fastcat.files import explained, write_atomically
from fastcat.loaders.class_names import match
from fastcat.loaders.dataset import Dataset
from fastcat.models import make_model

FORMAT = 1


def last_checkpoint(run: Path) -> Path:
    """Where a run stands."""
    return run / "checkpoints" / "last.pt"


def good_checkpoint(run: Path) -> Path:
    """The end of the last epoch to which a run may roll back."""
    return run / "checkpoints" / "good.pt"


def save_checkpoint(run: Path, state: dict[str, Any], good: bool = False) -> None:
    """Write checkpoints/last.pt; the former one becomes previous.pt. good: also as good.pt.

    Raises InputError when the disk refuses; the former checkpoints are then as they were.
    """
    last = last_checkpoint(run)
    previous, fresh = last.with_name("previous.pt"), last.with_name("fresh.pt")
    write_atomically(fresh, lambda file: torch.save({"format": FORMAT, **state}, file))
    with explained(last):
        if good:
            _name_also(fresh, good_checkpoint(run))
        if last.exists():
            _name_also(last, previous)
        os.replace(fresh, last)


def _name_also(file: Path, name: Path) -> None:
    """A second name for a file, so that the first is there at every moment; else a copy."""
    second = name.with_name("second.pt")
    second.unlink(missing_ok=True)
    try:
        os.link(file, second)
    except OSError:
        shutil.copyfile(file, second)  # a file system without hard links
    os.replace(second, name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`.

    Raises InputError for a file that is missing, damaged, not fastcat's, or that carries code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"checkpoint {path} is damaged: {damaged} has the wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} contains pickled code and was not loaded: "
            "only tensors and plain values are accepted"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError) as error:
        raise InputError(
            f"checkpoint {path} is damaged or not a checkpoint: expected a complete torch archive"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this version of fastcat")
    return state


def load_last_checkpoint(run: Path) -> tuple[dict[str, Any], str | None]:
    """The newest whole checkpoint of a run, and a remark if that is not the last one."""
    last = last_checkpoint(run)
    previous = last.with_name("previous.pt")
    if not last.exists() and not previous.exists():
        raise InputError(f"{run} is not a run: it has no checkpoints/last.pt")
    try:
        return read_checkpoint(last), None
    except InputError as error:
        if not previous.exists():
            raise
        state = read_checkpoint(previous)
        # out of the way, or the next checkpoint would make it the previous one
        if last.exists():
            os.replace(last, last.with_name("damaged.pt"))
        return state, f"{error}; going on from previous.pt"


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What a weight file says of itself: how to build the network and where it comes from.

    data, data_digest: name and exact content of the data set; mean, std: normalisation inside the
    model, None without; threats: under which it was judged, as `parse_threats` reads them;
    selected: how this state was chosen ("last", "best on val", "best on test"); epoch counts
    finished epochs.
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
