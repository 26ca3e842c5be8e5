"""One batch, as every loader hands it to the step."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """x: [B, C, H, W] in [0, 1], channels-last; y: [B] int64 labels; index: [B] int64 places in the data set.

    All three lie on the device that computes.
    """

    x: Tensor
    y: Tensor
    index: Tensor
