"""The papers' data pipeline: torchvision transforms on PIL images in DataLoader workers.

Zero-pad by 4 and crop back, flip, to float32 in [0, 1], image by image on the CPU, new worker
processes each epoch, no normalisation: that of train_cat.py, which has batches of 128 and 4
workers. Pinned memory on a GPU is kinder than it.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    import numpy as np


class ImageArray(Dataset[tuple[Tensor, int]]):
    """Image i of a uint8 array `[N, H, W, 3]` as PIL image, transformed, and its label."""

    def __init__(
        self, images: "np.ndarray", labels: Sequence[int], transform: Callable[[Any], Tensor]
    ) -> None:
        self.images = images
        self.labels = [int(label) for label in labels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def plain_loader(
    images: "np.ndarray", labels: Sequence[int], batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, int]]:
    """Batches of x `[B, 3, H, W]` in [0, 1] and y `[B]` on the CPU, each image once an epoch.

    images: uint8 `[N, H, W, 3]`. labels: N class indices. workers: processes, 0 for none.
    The last batch may be smaller. Order and augmentation come from torch's global seed.
    Raises ImportError where torchvision is missing, ValueError for images of another form.
    """
    try:
        from torchvision import transforms
    except ImportError as error:
        raise ImportError(
            "the plain loader uses torchvision: pip install torchvision pillow"
        ) from error
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"got images of {images.dtype} and shape {images.shape}; expected uint8 [N, H, W, 3]"
        )
    if len(images) != len(labels):
        raise ValueError(f"got {len(images)} images and {len(labels)} labels")
    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[1:3], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    return DataLoader(
        ImageArray(images, labels, transform),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        drop_last=False,
    )
