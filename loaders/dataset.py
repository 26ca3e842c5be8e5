"""What every data set is once it is read: two splits of uint8 images with their labels."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W, C], perhaps a read-only memory map; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set as the trainer sees it.

    crop_pad (pixels of zero padding for the random crop) and flip (random mirror images) are the
    augmentation that suits the data; digest identifies the exact images and labels.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    crop_pad: int
    flip: bool
    digest: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height and width in pixels, and channels."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images [N, H, W, C], as pixels in [0, 1]."""
    channels = images.shape[3]
    total, squares = np.zeros(channels), np.zeros(channels)
    for begin in range(0, len(images), 4096):
        # a slice at a time: a memory map is never read whole
        part = images[begin : begin + 4096].astype(np.float64) / 255
        total += part.sum((0, 1, 2))
        squares += (part**2).sum((0, 1, 2))
    pixels = images.size / channels
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
