"""Images as eps counts them: pixels in [0, 1], normalised nowhere but in the model."""

from torch import Tensor

from fastcat.errors import InputError


def check_images(x: Tensor) -> None:
    """Raise InputError for no images, and for some outside [0, 1]: eps would be another length."""
    if not x.numel():
        raise InputError("there are no images: the batch is empty")
    low, high = (bound.item() for bound in x.aminmax())
    if low >= 0 and high <= 1:
        return
    if low < 0 < high - low < 20 and (low < -0.2 or high > 1.2):
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
