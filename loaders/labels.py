"""Labels: reading them as int64, checking them against the classes, drawing a test split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastcat.errors import InputError


def class_numbers(labels: Any, what: str, images: int) -> np.ndarray:
    """Labels as int64 [N].

    labels: sequence, array or tensor, [N] or [N, 1], of integers or booleans (False: class 0).
    what: what the error calls them.
    images: N.
    Raises InputError for anything else, floats of whole numbers included.
    """
    array = as_array(labels)
    check_label_form(array.dtype, array.shape, what, images)
    # numbers beyond int64 become negative, which is refused later
    return array.reshape(images).astype(np.int64, copy=False)


def check_label_form(dtype: np.dtype, shape: tuple[int, ...], what: str, images: int) -> None:
    """Raises InputError unless dtype and shape are those of labels of so many images."""
    if dtype.kind not in "biu" or shape not in ((images,), (images, 1)):
        one_hot = len(shape) == 2 and shape[0] == images
        raise InputError(
            f"{what} are {dtype} {list(shape)}, expected integers [{images}], a class number for "
            f"each image{': of one-hot rows give .argmax(1)' if one_hot else ', from 0 on'}"
        )


def class_number(label: Any, what: str) -> int:
    """The label of one item: an integer, a boolean, or an array or tensor of one of these."""
    array = as_array(label)
    if array.dtype.kind not in "biu" or array.size != 1:
        shown = repr(array.item()) if array.ndim == 0 else f"{array.dtype} {list(array.shape)}"
        raise InputError(
            f"the label of {what} is {shown}, expected the number of its class, an integer"
            f"{': of a one-hot row give .argmax()' if array.size > 1 else ' from 0 on'}"
        )
    return int(array.astype(np.int64).item())


def as_array(values: Any) -> np.ndarray:
    """An array of a tensor on any device, or of anything that numpy takes."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16
        return (values.float() if values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
        return np.asarray(array.tolist()) if array.dtype == object else array
    except ValueError:  # lists of different lengths
        return np.asarray(values, dtype=object)


def check_splits(labels: Mapping[str, np.ndarray], classes: Sequence[str], origin: str) -> None:
    """Raise InputError unless both splits have images of `classes`, and train of two of them.

    labels: by split, int64 [N].
    """
    for split, values in labels.items():
        check_labels(values, split, len(classes), origin)
    occurring = np.unique(labels["train"])
    if len(occurring) == 1:
        raise only_one_class(origin, classes[int(occurring[0])])


def only_one_class(origin: object, name: str) -> InputError:
    return InputError(f"{origin} has only one class, {name!r}: at least two are needed")


def check_labels(labels: np.ndarray, which: str, classes: int, origin: str) -> None:
    """Raise InputError unless there are images and every label is one of `classes` classes."""
    if not len(labels):
        raise InputError(f"the {which} split of {origin} is empty: expected at least one image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"the {which} labels of {origin} run from {low} to {high}, expected 0 to {classes - 1} "
            f"for its {classes} classes: number the classes from 0 on and write the labels anew"
        )


def count_classes(labels: np.ndarray, which: str, origin: str, remedy: str = "") -> int:
    """Number of classes of labels without class names: the largest label plus 1.

    which: "train" or "test", for the error.
    origin: what the error calls the data set.
    remedy: added to the error about a class that never occurs.
    Raises InputError for negative labels and for a class that never occurs.
    """
    classes = int(labels.max(initial=-1)) + 1
    if labels.min(initial=0) < 0:
        raise InputError(
            f"the {which} labels of {origin} run from {labels.min()} to {labels.max()}, expected "
            "0, 1, 2, ...: number the classes from 0 on and write the labels anew"
        )
    check_no_gaps(labels, classes, which, origin, remedy)
    return classes


def check_no_gaps(
    labels: np.ndarray, classes: int, which: str, origin: str, remedy: str = ""
) -> None:
    """Raise InputError unless each of the classes 0 .. classes - 1 occurs."""
    present = np.unique(labels)
    if len(present) < classes:
        missing = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
        raise InputError(
            f"the {which} labels of {origin} run up to {classes - 1}, but {classes - len(present)} "
            f"of them, such as {missing}, never occur: number the classes 0, 1, 2, ... without gaps"
            + remedy
        )


def choose_test(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Which images are the test split, bool [N]: a share of each class, rounded, drawn by seed."""
    # numpy promises that the stream of RandomState never changes
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(share * len(members))]] = True
    return is_test
