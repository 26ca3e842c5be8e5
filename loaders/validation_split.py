"""The validation split: which training images are held out, drawn by the run's seed."""

import torch
from torch import Tensor

from fastcat.errors import InputError
from fastcat.seeds import derive_seed


def split_indices(
    images: int, train_size: int | None, val_size: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Images to train on, and images held out, both int64 in ascending order.

    images: how many there are.
    train_size: None: all that are not held out.
    val_size: None: a tenth of train_size (else of all), at most 1024.
    Raises InputError where there are not enough images.
    """
    if val_size is None:
        val_size = min(1024, max(1, (train_size or images) // 10))
    if train_size is None:
        train_size = images - val_size
    if train_size + val_size > images or train_size < 1:
        raise InputError(
            f"{train_size} training and {val_size} held-out images are more than the {images} "
            "there are: lower --train-size or --val-size"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "split"))
    order = torch.randperm(images, generator=generator)
    return order[val_size : val_size + train_size].sort().values, order[:val_size].sort().values
