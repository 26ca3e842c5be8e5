"""What every data set is once it is read: two splits of uint8 images with their labels."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, H, W, C], C-contiguous, possibly a read-only memory map; labels: int64 [N]."""

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
