"""Which training images are trained on and which are held out, drawn by the run's seed."""

import torch
from torch import Tensor

from fastcat.errors import InputError
from fastcat.seeds import derive_seed


def split_indices(
    images: int, train_size: int | None, val_size: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Places [N] int64 of the images to train on and of those held out, in ascending order.

    val_size None holds out a tenth of what is wanted, at most 1024 images; train_size None trains
    on all the others. Raises InputError when there are not as many images.
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
