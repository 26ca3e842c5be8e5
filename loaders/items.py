"""Any map-style data set of (image, label), such as torchvision's, as a split: read item by item.

An image is a PIL image, a uint8 array [H, W, C] or [H, W], or a tensor [C, H, W], uint8 or float in
[0, 1]. Random transforms draw from the workers' own random state, which the loader seeds.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from fastcat.errors import InputError
from fastcat.guard import check_images

from .dataset import Dataset, Split
from .digest import array_checksum, dataset_digest
from .labels import check_labels
from .readers import Reader


class ItemImages:
    """The images of a map-style data set, [N, H, W, C], read one by one where they are wanted."""

    def __init__(self, items: Any) -> None:
        self.items = items
        first = to_array(items[0][0])
        self.shape = (len(items), *first.shape)
        self.dtype = first.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Images [n, H, W, C] of a slice or an array of rows. Raises InputError for odd ones."""
        rows = np.arange(len(self))[rows]
        return np.stack([self.item(int(row)) for row in rows])

    def item(self, row: int) -> np.ndarray:
        image = to_array(self.items[row][0])
        if (image.shape, image.dtype) != (self.shape[1:], self.dtype):
            raise InputError(
                f"image {row} is {image.dtype} {image.shape}, but the first is {self.dtype} "
                f"{self.shape[1:]}: put a Resize into the data set's transform"
            )
        return image


def to_array(image: Any) -> np.ndarray:
    """[H, W, C], uint8 or float32 in [0, 1]. Raises InputError for anything else."""
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    if isinstance(image, Tensor):
        image = image.detach().cpu().movedim(0, -1).numpy() if image.ndim == 3 else image.numpy()
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not image.size:
        raise InputError(f"an image has shape {image.shape}, expected height, width and channels")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"an image is of {image.dtype}, expected uint8 or floats in [0, 1]")
    image = image.astype(np.float32)
    check_images(torch.from_numpy(image))
    return image


def from_items(
    train: Any,
    test: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "own",
    crop_pad: int = 0,
    flip: bool = False,
) -> Dataset:
    """A Dataset of two map-style data sets of (image, label), for `fastcat.train(config, dataset)`.

    classes: names by label, else those of `train.classes`, else the labels. Labels are taken from
    `targets` or `labels` where a data set has them, else by one pass through its items. The digest
    covers labels and a few images only. Raises InputError for what no batch can be made of.
    """
    splits = [_split(part, items) for part, items in (("train", train), ("test", test))]
    if splits[0].images.shape[1:] != splits[1].images.shape[1:]:
        raise InputError(
            f"train images are {splits[0].images.shape[1:]}, test images "
            f"{splits[1].images.shape[1:]}: expected one size"
        )
    labels = np.concatenate([split.labels for split in splits])
    if classes is None:
        classes = getattr(train, "classes", None)
    names = tuple(map(str, range(int(labels.max()) + 1) if classes is None else classes))
    for part, split in zip(("train", "test"), splits, strict=True):
        check_labels(split.labels, part, len(names), name)
    samples = [split.images[:: max(1, len(split) // 8)] for split in splits]
    return Dataset(
        name=name,
        classes=names,
        train=splits[0],
        test=splits[1],
        crop_pad=crop_pad,
        flip=flip,
        digest=dataset_digest(names, map(array_checksum, [labels, *samples])),
    )


def _split(part: str, items: Any) -> Split:
    if not len(items):
        raise InputError(f"the {part} data set is empty")
    labels = getattr(items, "targets", None)
    labels = getattr(items, "labels", None) if labels is None else labels
    if labels is None or len(labels) != len(items):
        labels = [label for _, label in (items[row] for row in range(len(items)))]
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"the labels of the {part} data set are no class indices: expected ints")
    return Split(images=ItemImages(items), labels=array.astype(np.int64))


class _Rows(torch.utils.data.Dataset):
    """A split as a map-style data set; from a worker errors come back as values, whole."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, row: int) -> Tensor | InputError:
        images = self.split.images
        try:
            image = images.item(row) if isinstance(images, ItemImages) else images[row : row + 1][0]
        except InputError as error:
            return error
        return torch.from_numpy(np.array(image))


def item_reader(split: Split, workers: int) -> Reader:
    """Reads a split through torch's DataLoader: the plain way, for data sets that compute.

    workers: processes that read, as multiprocessing starts them; 0 for none but this one.
    Raises InputError where they would have to be given a data set that cannot be pickled.
    """
    rows = _Rows(split)
    if workers:
        _check_sendable(rows)

    def read(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            rows,
            batch_sampler=[places.tolist() for places in batches],
            num_workers=workers,
            collate_fn=_stack,
            generator=torch.Generator().manual_seed(seed),
        )
        # workers are forked here and not when the first batch is asked for
        with _no_signal_of_children():
            loaded = iter(loader)
        return _labelled(_or_death(loaded) if workers else loaded, split, batches)

    return read


def _check_sendable(rows: _Rows) -> None:
    if multiprocessing.get_start_method() == "fork":
        return  # a child has what its parent has
    try:
        ForkingPickler.dumps(rows)
    except Exception as error:  # whatever objects raise that cannot be pickled
        why = " ".join(str(error).split())
        raise InputError(
            f"the data set cannot be given to worker processes ({why}): type --workers 0, or make "
            "it of functions and classes of a module, and open files where they are first read"
        ) from error


@contextmanager
def _no_signal_of_children() -> Iterator[None]:
    """Keep torch from raising a worker's death wherever the main thread is, as within a step.

    It is found soon enough where the worker's batch is waited for.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    yield
    if signal.getsignal(signal.SIGCHLD) is not handler:
        signal.signal(signal.SIGCHLD, handler)


def _or_death(loaded: Iterator[Tensor | InputError]) -> Iterator[Tensor | InputError]:
    """The same, and one sentence where a process behind it dies."""
    try:
        yield from loaded
    except (RuntimeError, OSError, EOFError) as error:
        if str(error).startswith("Caught "):  # in the data set, as torch hands it on
            raise
        raise InputError(
            f"a process that reads images died ({error}), perhaps for want of memory: type fewer "
            "--workers, or --workers 0; a run can be resumed from its last checkpoint"
        ) from error


def _labelled(
    loaded: Iterator[Tensor | InputError], split: Split, batches: Sequence[np.ndarray]
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, places in zip(loaded, batches, strict=True):
        if isinstance(images, InputError):
            raise images
        yield images, torch.from_numpy(split.labels[places])


def _stack(images: list[Tensor | InputError]) -> Tensor | InputError:
    faults = [image for image in images if isinstance(image, InputError)]
    return faults[0] if faults else torch.stack(images)  # type: ignore[arg-type]
