"""Order of classes called by numbers: as text (0, 1, 10, 2) or as numbers (0, 1, 2, 10)."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastcat.errors import InputError

from .class_names import relabelled, some
from .dataset import Dataset
from .formats.digest import dataset_digest
from .formats.source import Source

_NUMBERED = re.compile(r"(\D*)([0-9]{1,18})(\D*)")


def numeric_order(classes: Sequence[str]) -> tuple[str, ...] | None:
    """Classes sorted by the number in their names: 0, 1, 2, 10, or class0, class1, class10.

    None where a name has no number, or names differ in more than their numbers.
    """
    found = [match for name in classes if (match := _NUMBERED.fullmatch(name))]
    if len(found) < len(classes) or len({(match[1], match[3]) for match in found}) != 1:
        return None
    return tuple(match[0] for match in sorted(found, key=lambda match: (int(match[2]), match[0])))


def order_note(classes: Sequence[str]) -> str | None:
    """A sentence for the user where classes are in the order of text, not of their numbers."""
    numbers = numeric_order(classes)
    if numbers in (None, tuple(classes)) or list(classes) != sorted(classes):
        return None
    return (
        f"the classes are called by numbers and stand in the order of text, {some(classes, 4)}; "
        f"for {some(numbers, 4)}, as a network of others may have them, type --class-order number"
    )


def in_order(dataset: Dataset, order: str) -> Dataset:
    """The same images with classes in the order asked for.

    order: "text" leaves them as they are, "number" sorts by number.
    Raises InputError where "number" is asked for and names have none.
    """
    if order == "text":
        return dataset
    classes, labels = _renumbered(dataset.classes, dataset.name)
    if classes == dataset.classes:
        return dataset
    digest = dataset_digest(classes, [dataset.digest])
    return replace(relabelled(dataset, labels, classes), digest=digest)


def source_in_order(source: Source, order: str) -> Source:
    """As `in_order`, for images that are still to be packed."""
    if order == "text":
        return source
    classes, labels = _renumbered(source.classes, source.origin)
    if classes == source.classes:
        return source
    return replace(
        source,
        classes=classes,
        labels={split: labels[old] for split, old in source.labels.items()},
        digest=dataset_digest(classes, [source.digest]),
    )


def _renumbered(classes: tuple[str, ...], origin: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes sorted by number, and the new label of each old one, int64 [classes]."""
    numbers = numeric_order(classes)
    if numbers is None:
        raise InputError(
            f"--class-order number needs classes that are called by numbers, but those of {origin} "
            f"are {some(classes, 4)}: leave it out"
        )
    label_of = {name: label for label, name in enumerate(numbers)}
    return numbers, np.array([label_of[name] for name in classes])
