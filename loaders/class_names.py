"""Class names: matching the classes of two data sets, or of a data set and a network.

Classes are matched by name. Classes called 0, 1, 2, ..., as those of .npz files, have no names and
are matched by number.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastcat.errors import InputError

from .dataset import Dataset, Split


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes without names: "0", "1", "2", ..."""
    return tuple(map(str, range(count)))


def are_numbers(classes: Sequence[str]) -> bool:
    return tuple(classes) == numbered(len(classes))


def match(names: Sequence[str], whose: str, own: Sequence[str], owner: str) -> np.ndarray:
    """Label among `own` of each class in `names`, int64 [len(names)].

    By name, in any order, where every name is one of `own`. By number where one side has no names;
    then there may be fewer numbers than names, but not fewer names than numbers.
    names: classes to match.
    whose: what the error calls their owner.
    own: classes to match them with.
    owner: what the error calls the owner of those.
    Raises InputError for anything else, and where matching by name and by number would differ.
    """
    labels = np.arange(len(names))
    if tuple(names) == tuple(own):
        return labels
    ours, theirs = ([unicodedata.normalize("NFC", name) for name in side] for side in (own, names))
    for side, of in ((ours, owner), (theirs, whose)):
        name, count = Counter(side).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"the classes of {whose} and {owner} differ, and {of} has {count} of the name "
                f"{name!r}: give each class a name of its own"
            )
    without = are_numbers(theirs)
    enough = len(theirs) == len(ours) or (without and len(theirs) < len(ours))
    by_number = enough and (without or are_numbers(ours))
    if by_number and not any(name.isdecimal() for name in (ours if without else theirs)):
        return labels
    label_of = {name: label for label, name in enumerate(ours)}
    if unknown := [name for name in theirs if name not in label_of]:
        raise InputError(
            f"{whose} has {len(names)} classes, {some(names)}, and {unknown[0]!r} is none of the "
            f"{len(own)} of {owner}, {some(own)}: give both the same class names"
        )
    by_name = np.array([label_of[name] for name in theirs])
    if by_number and (by_name != labels).any():
        raise InputError(
            f"the classes of {whose} are {some(names)}, those of {owner} {some(own)}, and these "
            "may be names or numbers: give both the same class names in the same order"
        )
    return by_name


def by_number(names: Sequence[str], whose: str, own: Sequence[str], owner: str) -> list[str]:
    """A sentence for the user where `match` matches by number; parameters as of `match`."""
    if are_numbers(names) == are_numbers(own):
        return []
    return [f"the classes of {whose}, {some(names)}, go by number as those of {owner}, {some(own)}"]


def relabelled(dataset: Dataset, labels: np.ndarray, classes: Sequence[str]) -> Dataset:
    """The same images, with labels of other classes.

    labels: new label of each old one, as `match` returns.
    classes: names of the new classes.
    """
    train, test = (
        Split(split.images, labels[split.labels]) for split in (dataset.train, dataset.test)
    )
    return replace(dataset, classes=tuple(classes), train=train, test=test)


def never_learnt(dataset: Dataset, labels: np.ndarray) -> list[str]:
    """A sentence for the user where classes of the test images are missing in training `labels`."""
    absent = np.setdiff1d(dataset.test.labels, labels)
    if not len(absent):
        return []
    names = some([dataset.classes[label] for label in absent])
    return [f"classes of the test images without training images: {len(absent)} ({names})"]


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first `shown` names, with ", ..." for the others."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
