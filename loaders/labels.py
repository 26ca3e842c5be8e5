"""Labels: whether they are classes, and a test split for data that come without one."""

import numpy as np

from fastcat.errors import InputError


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


def check_no_gaps(labels: np.ndarray, classes: int, origin: str) -> None:
    """Raise InputError unless each of the classes 0 .. classes - 1 occurs."""
    present = np.unique(labels)
    if len(present) < classes:
        missing = int(np.flatnonzero(np.append(present, -1) != np.arange(len(present) + 1))[0])
        raise InputError(
            f"the training labels of {origin} run up to {classes - 1}, but "
            f"{classes - len(present)} of them, such as {missing}, never occur: number the classes "
            "0, 1, 2, ... without gaps"
        )


def choose_test(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [N]: a share of each class, rounded, the same for a seed in every version of numpy."""
    # RandomState, since numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(share * len(members))]] = True
    return is_test
