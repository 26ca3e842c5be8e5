"""The loader of a data set's images: chosen by their size and by what is free, or by name."""

from pathlib import Path

import torch

from fastcat import registry
from fastcat.errors import InputError, nearest

from .backends.ffcv import has_ffcv
from .backends.resident import needs_copy, resident_bytes
from .dataset import Dataset, Split
from .formats.beton import BetonImages
from .items import ItemImages
from .loader import Loader, Sampling
from .registry import BACKENDS, loader_names

# of the free memory; the rest is for networks and their activations
_RESIDENT_SHARE = 0.4
# bytes: a larger map would seem to fill the memory of a CPU
_MOST_MAPPED = 512 << 20


def choose_loader(name: str, split: Split, sampling: Sampling, device: torch.device) -> str:
    """`name` itself, or what "auto" comes to.

    That is resident where the images are on the device or fit it, else torch for images that are
    computed one by one, ffcv for .beton files where FFCV is installed, and stream.
    Raises InputError for an unknown name.
    """
    if name != "auto":
        if name not in loader_names():
            raise InputError(f"unknown loader {name!r}: {nearest(name, [*loader_names(), 'auto'])}")
        return name
    if isinstance(split.images, ItemImages):
        return "torch"
    size = resident_bytes(split, sampling)
    if device.type == "cpu":
        in_place = not needs_copy(split, sampling, device) and size <= _MOST_MAPPED
        return "resident" if in_place else "stream"
    if size <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "resident"
    return "ffcv" if isinstance(split.images, BetonImages) and has_ffcv() else "stream"


def make_loader(
    name: str,
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    data_dir: Path,
    workers: int | None = None,
) -> Loader:
    """The loader called `name`.

    part: "train" or "test".
    sampling: which of its images, in what order, and their augmentation.
    data_dir: folder for files that a loader writes once (ffcv).
    workers: processes or threads that read (torch, ffcv); None: as many as suit.
    Raises InputError for an unknown name, and as the loader's file says.
    """
    make = registry.load(BACKENDS, name, "loader")
    return make(dataset, part, sampling, device, data_dir, workers)


def unchanged_loader(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    workers: int | None = None,
) -> Loader:
    """A loader for an evaluation, which is not worth waiting for FFCV's compiler."""
    name = choose_loader("auto", getattr(dataset, part), sampling, device)
    name = "stream" if name == "ffcv" else name
    return make_loader(name, dataset, part, sampling, device, Path(), workers)
