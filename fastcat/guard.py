"""What comes from outside: images as eps counts them, labels, networks, and what is no answer.

Images are pixels in [0, 1], normalised nowhere but in the model.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fastcat.errors import InputError

# in the place of a class, where a network gives none
NO_ANSWER = -1


def answers(z: Tensor) -> Tensor:
    """The class with the largest logit [...], from logits [..., C].

    It is NO_ANSWER where that logit is NaN or infinite, as softmax gives no probabilities there.
    Other logits may be -inf: classes that are masked out.
    """
    top = z.max(-1)
    return torch.where(top.values.isfinite(), top.indices, NO_ANSWER)


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


def as_batch(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Images [B, C, H, W] and labels int64 [B] as an attack reads them, on the images' device.

    x: float32 or float64 in [0, 1], of any layout
    y: class indices of any integer type, in a tensor, an array or a list

    Neither is changed. Raises InputError for anything else.
    """
    if not isinstance(x, Tensor):
        raise InputError(
            f"images are of type {type(x).__name__}, expected a tensor [B, C, H, W]: "
            "type torch.as_tensor(x)"
        )
    if x.dtype not in (torch.float32, torch.float64):
        instead = "x / 255" if _is_integer(x.dtype) else "x.float()"
        raise InputError(
            f"images are {_name(x.dtype)}, expected float32 or float64: type {instead}"
        )
    if x.dim() != 4:
        remark = ": for a single one type x[None]" if x.dim() == 3 else ""
        raise InputError(f"images have shape {tuple(x.shape)}, expected [B, C, H, W]{remark}")
    if x.is_meta or x.layout != torch.strided:
        raise InputError("images are on the meta device or sparse, expected an ordinary tensor")
    check_images(x)
    x = x.detach()
    # kernels want pixels on one axis
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    return x, as_labels(y, len(x)).to(x.device)


def as_labels(y: Any, images: int) -> Tensor:
    """Class indices int64 [B] from a tensor, an array or a list of any integer type.

    Raises InputError for other numbers, another shape, and more or fewer than images.
    """
    if not isinstance(y, Tensor):
        try:
            array = np.asarray(y)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"labels are {y!r:.40}, expected a class index an image") from error
        if array.dtype.kind not in "iu":
            raise InputError(f"labels are of type {array.dtype}, expected integers 0, 1, ...")
        y = torch.from_numpy(array.astype(np.int64))
    if y.shape != (images,):
        instead = ""
        if y.dim() == 2 and len(y) == images:
            instead = ": type " + ("y.squeeze(1)" if y.shape[1] == 1 else "y.argmax(1)")
        raise InputError(
            f"labels have shape {tuple(y.shape)}, expected ({images},), one for each image{instead}"
        )
    if not _is_integer(y.dtype):
        raise InputError(f"labels are {_name(y.dtype)}, expected integers 0, 1, ...: type y.long()")
    if y.is_meta or y.layout != torch.strided:
        raise InputError("labels are on the meta device or sparse, expected an ordinary tensor")
    return y.detach().long()


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


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


def check_classes(lowest: int, highest: int, classes: int) -> None:
    """Raise InputError for labels that are none of the classes 0 .. classes - 1."""
    if lowest < 0 or highest >= classes:
        raise InputError(
            f"labels run from {lowest} to {highest}, expected 0 to {classes - 1} for the "
            f"{classes} classes that have logits"
        )


def check_initialised(weights: Iterable[Tensor], who: str) -> None:
    """Raise InputError for weights without values."""
    if any(isinstance(weight, UninitializedParameter) or weight.is_meta for weight in weights):
        raise InputError(
            f"{who} has weights without values, on the meta device or of lazy layers, expected an "
            "initialised network: run it once on an image [1, C, H, W], or load its weights"
        )


class CheckedNetwork:
    """A network that a caller hands in, which is checked when it is asked for logits.

    model: the network as it was given
    dtype: of the images that it reads: that of its weights, or that of x where these differ
    without_gradient: the most images [] of a call whose gradients had NaN
    """

    def __init__(self, model: Any, x: Tensor, y: Tensor) -> None:
        """x, y: of `as_batch`. Raises InputError for what is no network."""
        if isinstance(model, type) or not callable(model):
            what = f"the class {model.__name__}" if isinstance(model, type) else repr(model)[:40]
            raise InputError(f"the network is {what}, expected an nn.Module or another callable")
        weights = list(model.parameters()) if isinstance(model, nn.Module) else []
        check_initialised(weights, "the network")
        dtypes = {p.dtype for p in weights if p.is_floating_point()}
        self.model: Callable[[Tensor], Tensor] = model
        self.dtype = dtypes.pop() if len(dtypes) == 1 else x.dtype
        self.lowest, self.highest = (int(label) for label in y.aminmax())
        self.without_gradient = torch.zeros((), dtype=torch.int64, device=x.device)

    def look_at(self, grad: Tensor) -> None:
        """Count the images whose gradient [B, C, H, W] has NaN."""
        count = grad.flatten(1).isnan().any(1).sum()
        self.without_gradient = torch.maximum(self.without_gradient, count)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C]. Raises InputError for anything else, and where a label is none of C."""
        with self.explained(images):
            z = self.model(images)
        check_logits(z, len(images))
        check_classes(self.lowest, self.highest, z.shape[1])
        return z

    @contextmanager
    def explained(self, images: Tensor) -> Iterator[None]:
        """What its own code raises at these images in one sentence (InputError)."""
        try:
            yield
        except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise InputError(
                f"the network fails on images {_name(images.dtype)} {tuple(images.shape)} on "
                f"{images.device}, expected some that it takes: {reason}"
            ) from error
