"""Images as eps counts them: pixels in [0, 1], normalised nowhere but in the model."""

from typing import Any

import torch
from torch import Tensor

from fastcat.errors import InputError


def check_images(x: Tensor) -> None:
    """Raise InputError for no images, and for some outside [0, 1]: eps would be another length."""
    if not x.numel():
        raise InputError("there are no images: the batch is empty")
    low, high = (bound.item() for bound in x.aminmax())
    if low >= 0 and high <= 1:
        return
    if low != low:
        why = "some pixels are NaN"
    elif low < 0 < high - low < 20 and (low < -0.2 or high > 1.2):
        # black and white are as far apart as the range, or farther
        meant = 8 / (high - low)
        why = (
            f"normalised in the loader, where an epsilon of 8/255 would mean about {meant:.2g}/255 "
            "in pixels: remove Normalize from the data and put it into the model"
        )
    elif low >= 0 and 1.2 < high <= 255:
        why = "they look like 0 to 255: divide them by 255"
    elif low >= -0.2 and high <= 1.2:
        why = "some have left the range, for example when they were resized: clamp them"
    else:
        why = "eps is counted in pixels of that range"
    raise InputError(f"images range from {low:.3g} to {high:.3g}, expected [0, 1]: {why}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_logits(z: Any, images: int, who: str = "the network", classes: int | None = None) -> None:
    """Raise InputError unless z, which `who` gives, is logits [B, C] of so many images.

    classes: how many logits an image there must be, None for any number.
    """
    if not isinstance(z, Tensor):
        raise InputError(
            f"{who} gives a {type(z).__name__}, expected a tensor of logits [B, C]: "
            "let its forward return that alone"
        )
    shape, is_float = tuple(z.shape), z.is_floating_point() and z.layout == torch.strided
    if is_float and shape in ((images,), (images, 1)):
        raise InputError(
            f"{who} gives one logit an image, shape {shape}, expected one for each class: "
            "for a yes or no let its forward return torch.stack([0 * z, z], 1)"
        )
    if not is_float or len(shape) != 2 or shape[0] != images:
        instead = ": let its forward end with flatten(1)" if shape[2:] == (1, 1) else ""
        raise InputError(
            f"{who} gives {_name(z.dtype)} of shape {shape}, expected float logits "
            f"({images}, {classes or 'classes'}){instead}"
        )
    if classes not in (None, shape[1]):
        raise InputError(
            f"{who} gives {shape[1]} logits an image, expected {classes}, one for each class of "
            "the data: let its last layer have so many outputs"
        )
