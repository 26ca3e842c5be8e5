"""Sources: images that are packed before they are used, read in order, in blocks."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from ..dataset import Dataset

SPLITS = ("train", "test")
_BLOCK_IMAGES = 1024
_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Fault:
    """Why one image cannot be used.

    text: the image and what is wrong with it.
    remedy: what to do about it.
    skippable: whether the image may be left out.
    """

    text: str
    remedy: str
    skippable: bool = True


@dataclass(frozen=True)
class Block:
    """Some images of a split, in order.

    images: uint8 [K, H, W, C], the ones that can be used.
    kept: bool [N], which of the N images read these are.
    grey: whether all of them have one channel in their files.
    faults: why the others cannot be used.
    """

    images: np.ndarray
    kept: np.ndarray
    grey: bool = False
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Images that can be packed.

    name: of the data set.
    origin: what the user typed, for errors.
    classes: names in the order of the labels.
    labels: by split, int64 [N] in the order of reading.
    digest: SHA-256 over names and sizes, or over stored checksums; no image is read for it.
    resize: side in pixels that all images get; None: they stay as they are.
    crop_pad: as of `Dataset`; None: an eighth of the height.
    flip: as of `Dataset`.
    notes: sentences for the user about what is left out.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    labels: dict[str, np.ndarray]
    digest: str
    resize: int | None = None
    crop_pad: int | None = None
    flip: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(labels) for labels in self.labels.values())

    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the blocks. Raises InputError where no image is usable."""

    @abstractmethod
    def blocks(self, split: str, start: int) -> Generator[Block, None, None]:
        """Blocks of a split from image `start` on. Raises InputError for a damaged source."""


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """Arrays or memory maps, by split."""

    images: dict[str, np.ndarray]

    def shape(self) -> tuple[int, int, int]:
        _, height, width, channels = self.images["train"].shape
        side = self.resize
        return (side, side, channels) if side else (height, width, channels)

    def blocks(self, split: str, start: int) -> Generator[Block, None, None]:
        images = self.images[split]
        size = rows_at_once(images[:1].nbytes)
        for begin in range(start, len(images), size):
            part = np.ascontiguousarray(images[begin : begin + size])
            yield Block(fit_all(part, self.resize), np.ones(len(part), dtype=bool))


def from_dataset(dataset: Dataset, origin: str, resize: int | None) -> ArraySource:
    splits = {"train": dataset.train, "test": dataset.test}
    return ArraySource(
        name=dataset.name,
        origin=origin,
        classes=dataset.classes,
        labels={split: np.asarray(part.labels) for split, part in splits.items()},
        digest=dataset.digest,
        resize=resize,
        crop_pad=None if resize and dataset.crop_pad else dataset.crop_pad,
        flip=dataset.flip,
        images={split: part.images for split, part in splits.items()},
    )


def rows_at_once(image_bytes: int) -> int:
    """Images a block may hold, so that its memory is bounded."""
    return min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // max(1, image_bytes)))


def fit(image: Image.Image, side: int) -> Image.Image:
    """A square: the shorter side resized to `side` pixels, antialiased, the longer one cropped."""
    return ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)


def fit_all(images: np.ndarray, side: int | None) -> np.ndarray:
    """Images uint8 [N, side, side, C] from [N, H, W, C], C 1 or 3; side None: unchanged."""
    if side is None:
        return images
    fitted = np.empty((len(images), side, side, images.shape[3]), dtype=np.uint8)
    for out, pixels in zip(fitted, images, strict=True):
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        out[:] = np.asarray(fit(Image.fromarray(flat), side)).reshape(out.shape)
    return fitted
