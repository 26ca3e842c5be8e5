"""Which loader brings a data set's images: chosen by their size and what is free, or by name."""

from pathlib import Path

import torch

from fastcat.cpus import usable_cpus
from fastcat.errors import InputError, nearest

from .beton import BetonImages
from .beton_set import load_betons, write_betons
from .dataset import Dataset, Split
from .ffcv import FfcvReader, has_ffcv
from .items import ItemImages, item_reader
from .loader import Epochs, Loader
from .readers import Reader, array_reader
from .resident import ResidentLoader, needs_copy, resident_bytes
from .streamed import StreamedLoader

LOADERS = {
    "resident": "all images on the device as one tensor",
    "stream": "read from arrays or memory maps, uploaded while the device works",
    "ffcv": "decoded by FFCV from .beton files, which are written where there are none",
    "torch": "through torch's DataLoader, item by item",
}
# of the free memory; the rest is for networks and their activations
_RESIDENT_SHARE = 0.4
# bytes: a larger map would seem to fill the memory of a CPU
_MOST_MAPPED = 512 << 20
_WORKERS = 4


def choose_loader(name: str, split: Split, epochs: Epochs, device: torch.device) -> str:
    """The loader called `name`; "auto" is resident where the images are on the device or fit it.

    Else it is torch for what computes its images one by one, ffcv for .beton files where FFCV is
    installed, and stream. Raises InputError for a name that is not known.
    """
    if name != "auto":
        if name not in LOADERS:
            raise InputError(f"unknown loader {name!r}: {nearest(name, [*LOADERS, 'auto'])}")
        return name
    if isinstance(split.images, ItemImages):
        return "torch"
    size = resident_bytes(split, epochs)
    if device.type == "cpu":
        in_place = not needs_copy(split, epochs, device) and size <= _MOST_MAPPED
        return "resident" if in_place else "stream"
    if size <= _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "resident"
    return "ffcv" if isinstance(split.images, BetonImages) and has_ffcv() else "stream"


def make_loader(
    name: str,
    dataset: Dataset,
    part: str,
    epochs: Epochs,
    device: torch.device,
    data_dir: Path,
    workers: int | None = None,
) -> Loader:
    """The loader called `name` of the dataset's "train" or "test".

    data_dir: where ffcv writes .beton files of data sets that have none, once. workers: processes
    of torch's loader, or threads of ffcv; None for what suits.
    Raises InputError where FFCV is missing or cannot hold such images, and for a data set that
    cannot be given to worker processes.
    """
    split: Split = getattr(dataset, part)
    if name == "resident":
        return ResidentLoader(split, epochs, device)
    if name == "ffcv":
        folder = dataset.betons
        if folder is None:
            folder = data_dir / f"{dataset.name}-{dataset.digest[:12]}.beton"
            if not folder.exists():
                write_betons(dataset, folder)
            written = load_betons(folder)
            if written.digest != dataset.digest:
                raise InputError(f"{folder} holds other images than {dataset.name}: remove it")
            split = getattr(written, part)
        read: Reader = FfcvReader(folder / f"{part}.beton", split, epochs.batch_size, workers)
    elif name == "torch":
        if workers is None:
            # arrays are read faster than workers are told what to read
            computed = isinstance(split.images, ItemImages)
            workers = min(_WORKERS, usable_cpus()) if computed else 0
        read = item_reader(split, workers)
    else:
        read = array_reader(split)
    return StreamedLoader(split, epochs, device, read)


def unchanged_loader(
    dataset: Dataset, part: str, epochs: Epochs, device: torch.device, workers: int | None = None
) -> Loader:
    """A loader of images to be judged, which are not worth waiting for FFCV's compiler."""
    name = choose_loader("auto", getattr(dataset, part), epochs, device)
    name = "stream" if name == "ffcv" else name
    return make_loader(name, dataset, part, epochs, device, Path(), workers)
