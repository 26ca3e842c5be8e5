"""Where images come from before they are packed: any number of them, read in order, in blocks."""

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
    """Why one image cannot be used; skippable: leaving it out mends that."""

    text: str
    remedy: str
    skippable: bool = True


@dataclass(frozen=True)
class Block:
    """Some images of a split, in order.

    images: uint8 [K, H, W, C] of those that can be used; kept: bool [N], which of the N read they
    are. grey: all came with one channel, so that a split of nothing else needs no other two.
    """

    images: np.ndarray
    kept: np.ndarray
    grey: bool = False
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """What can be packed.

    origin: what the user typed, for sentences. labels: per split int64 [N] in the order of reading.
    digest: SHA-256 over what tells one content from another without reading the images (names and
    sizes, or checksums that are stored anyway). resize: side in pixels that all images get, None
    where they stay as they are. crop_pad None stands for an eighth of the height. notes: sentences
    about what is left out.
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
        """Height, width and channels of the blocks. Raises InputError where no image is good."""

    @abstractmethod
    def blocks(self, split: str, start: int) -> Generator[Block, None, None]:
        """The images of a split from number `start` on. Raises InputError for a damaged source."""


@dataclass(frozen=True, kw_only=True)
class ArraySource(Source):
    """A data set that is in memory, or mapped, already."""

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
    """Images a block may hold, so that memory is bounded whatever their size."""
    return min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // max(1, image_bytes)))


def fit(image: Image.Image, side: int) -> Image.Image:
    """The shorter side to `side` pixels, antialiased, and of the longer one the middle."""
    return ImageOps.fit(image, (side, side), method=Image.Resampling.BICUBIC)


def fit_all(images: np.ndarray, side: int | None) -> np.ndarray:
    """uint8 [N, H, W, C] with C 1 or 3 to [N, side, side, C]; None leaves them as they are."""
    if side is None:
        return images
    fitted = np.empty((len(images), side, side, images.shape[3]), dtype=np.uint8)
    for out, pixels in zip(fitted, images, strict=True):
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        out[:] = np.asarray(fit(Image.fromarray(flat), side)).reshape(out.shape)
    return fitted
