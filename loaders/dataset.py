"""A data set: two splits of images with labels, its classes and its augmentation."""

import mmap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcat.errors import InputError

from .labels import check_splits, class_numbers

# called with (done, total): bytes, files or images
Progress = Callable[[int, int], None]

_CHUNK_PIXELS = 1 << 22
_LAST = "give [height, width, channels], as by image.transpose(1, 2, 0)"


@dataclass(frozen=True)
class Split:
    """Images with labels.

    images: [N, H, W, C], uint8 or float32 in [0, 1]: an array, a read-only memory map, or any
        object with `shape` and `dtype` that gives an array at a slice or an array of rows.
    labels: int64 [N]; anything that `class_numbers` takes is made that.
    """

    images: Any
    labels: np.ndarray

    def __post_init__(self) -> None:
        labels = class_numbers(self.labels, "the labels", self.images.shape[0])
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set as the trainer takes it.

    classes: names in the order of the labels.
    crop_pad: pixels of zero padding for the random crop, unless --crop-pad is given.
    flip: whether images are mirrored at random, unless --flip is given.
    digest: identifies the exact images and labels.
    betons: folder of .beton files of the same images, if there is one.
    Raises InputError for a split without images, labels that are no classes, training images of
    one class alone, and images whose channels do not come last.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    crop_pad: int
    flip: bool
    digest: str
    betons: Path | None = None

    def __post_init__(self) -> None:
        shape = self.image_shape
        check_layout(shape, f"the images of {self.name}, of shape {list(shape)},")
        labels = {"train": self.train.labels, "test": self.test.labels}
        check_splits(labels, self.classes, self.name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height and width in pixels, and channels."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


def check_layout(shape: tuple[int, int, int], what: str, remedy: str = _LAST) -> None:
    """Raises InputError where channels cannot have come last: more than 3, and more than a side.

    shape: height, width, channels as they were taken.
    what: begins the sentence, for example "image 3".
    remedy: ends it.
    """
    height, width, channels = shape
    if channels > 3 and channels > min(height, width):
        raise InputError(
            f"{what} would have {channels} channels of {height} x {width} pixels: {remedy}"
        )


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of the same memory, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def read_rows(images: Any, rows: np.ndarray) -> np.ndarray:
    """Images [n, H, W, C] of a split.

    Pages of a memory map are released at once: they count as memory of this process.
    images: as of `Split`.
    rows: [n].
    """
    read = images[rows]
    mapped = getattr(getattr(images, "file", images), "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)
    return read


def channel_statistics(images: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]."""
    count, height, width, channels = images.shape
    total, squares = np.zeros(channels), np.zeros(channels)
    at_once = max(1, _CHUNK_PIXELS // (height * width))
    for begin in range(0, count, at_once):
        # a slice at a time: a memory map is never read whole
        part = images[begin : begin + at_once]
        part = part.astype(np.float64) / (255 if part.dtype == np.uint8 else 1)
        total += part.sum((0, 1, 2))
        squares += (part**2).sum((0, 1, 2))
    pixels = count * height * width
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
