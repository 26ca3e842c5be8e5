"""One batch, as every loader hands it to the step; and what a loss of images mixed of two is.

Of an image mixed of two (mixup, Zhang et al. 2018; CutMix, Yun et al. 2019) every loss is

    share * loss(z, y) + (1 - share) * loss(z, y_mixed),

in training and in the attack, which is how Rice et al. 2020 join mixup and adversarial training.
A loss that reads no labels is what it was.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Images, labels and places in the data set, on the device that computes.

    x: images [B, C, H, W] in [0, 1], channels-last
    y: labels [B], int64
    indices: places of the images in the data set [B], int64
    y_mixed: labels of the images mixed in [B], int64. None: images are not mixed
    share: how much of each image is its own [B], float32 in [0, 1]. None: images are not mixed
    """

    x: Tensor
    y: Tensor
    indices: Tensor
    y_mixed: Tensor | None = None
    share: Tensor | None = None


def by_share(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share * own + (1 - share) * other, computed in float32 or more, rounded once to own's dtype.

    share broadcasts to own. Where it is 1, or other equals own, that is own to the bit.
    """
    wide = torch.promote_types(own.dtype, share.dtype)
    return other.to(wide).lerp(own.to(wide), share.to(wide)).to(own.dtype)
