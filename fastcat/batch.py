"""One batch, as every loader hands it to the step."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images, labels and places in the data set, on the device that computes.

    x: [B, C, H, W] in [0, 1], channels-last; y, indices: [B] int64.
    """

    x: Tensor
    y: Tensor
    indices: Tensor
