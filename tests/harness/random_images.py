"""Data sets of random images, and whether two batches are the same."""

import numpy as np
import torch

from fastcat.batch import Batch
from fastcat.loaders.augmentation import Augmentation
from fastcat.loaders.dataset import Dataset, Split

CPU = torch.device("cpu")
MOVED = Augmentation(crop_pad=2, flip=True)


def random_split(n: int = 23, height: int = 6, width: int = 9, channels: int = 3) -> Split:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return Split(images, rng.integers(0, 5, n))


def random_dataset(channels: int = 3, n: int = 23) -> Dataset:
    return Dataset(
        name="random",
        classes=tuple("abcde"),
        train=random_split(n, channels=channels),
        test=random_split(7, channels=channels),
        crop_pad=2,
        flip=True,
        digest=f"{channels}{n:011}",
    )


def same(batch: Batch, other: Batch) -> bool:
    """Equal in every bit, and alike in memory layout."""
    return all(
        (a is None and b is None)
        or (torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride())  # type: ignore
        for a, b in zip(batch, other, strict=True)
    )


ARRAYS = {
    "x_train": np.random.default_rng(0).integers(0, 256, (30, 6, 5, 3), dtype=np.uint8),
    "y_train": np.arange(30) % 3,
    "x_test": np.random.default_rng(1).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8),
    "y_test": np.arange(9, dtype=np.uint8)[:, None] % 3,
}
