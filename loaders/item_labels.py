"""Labels and class names of the items of map-style data sets.

`targets` and `classes` of such a set need not be those of its items: a target_transform, a wrapper
or a subclass may yield others.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from fastcat.errors import InputError

from .class_names import match
from .labels import check_labels, class_numbers


def known_labels(items: Any) -> np.ndarray | None:
    """Labels of the items, int64 [N], if they are known without reading items; else None.

    They are for data sets with torchvision's own `__getitem__` and no target_transform, also inside
    of torch's Subset and ConcatDataset.
    """
    kind = getattr(type(items), "__getitem__", None)
    if kind is Subset.__getitem__:
        labels = known_labels(items.dataset)
        return None if labels is None else labels[np.asarray(items.indices, dtype=np.int64)]
    if kind is ConcatDataset.__getitem__:
        parts = [known_labels(part) for part in items.datasets]
        return None if any(part is None for part in parts) else np.concatenate(parts)  # type: ignore[arg-type]
    keeps = _keepers().get(kind)
    if keeps is None or items.target_transform is not None:
        return None
    return class_numbers(keeps(items), f"the labels of {type(items).__name__}", len(items))


def _keepers() -> dict[Any, Callable[[Any], Any]]:
    """By `__getitem__` of torchvision, function from a data set to the labels that it yields."""
    from torchvision import datasets

    return {
        datasets.DatasetFolder.__getitem__: lambda items: [label for _, label in items.samples],
        datasets.CIFAR10.__getitem__: lambda items: items.targets,
        datasets.MNIST.__getitem__: lambda items: items.targets,
        datasets.SVHN.__getitem__: lambda items: items.labels,
    }


def named(items: Any, labels: np.ndarray, part: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels by one numbering of classes, and the names of these (None: no names).

    Classes of the parts of a ConcatDataset are matched by name.
    items: data set.
    labels: int64 [N], as the items yield them.
    part: "train" or "test", for errors.
    Raises InputError for labels without a name, and where names of parts do not match.
    """
    sets, which, places = _sources(items)
    numbering: tuple[str, ...] | None = None
    labels = labels.copy()
    for number, own in enumerate(sets):
        rows = np.flatnonzero(which == number)
        names = class_names(own, places[rows], labels[rows])
        if names is None or not len(rows):
            continue
        check_labels(labels[rows], part, len(names), type(own).__name__)
        numbering = numbering or names
        whose = f"part {number} of the {part} data set"
        labels[rows] = match(names, whose, numbering, "those before it")[labels[rows]]
    return labels, numbering


def _sources(items: Any) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Data sets inside of Subset and ConcatDataset; of each item, number of its set, and row."""
    if isinstance(items, Subset):
        sets, which, places = _sources(items.dataset)
        indices = np.asarray(items.indices, dtype=np.int64)
        return sets, which[indices], places[indices]
    if isinstance(items, ConcatDataset):
        sets, parts = [], []
        for part in items.datasets:
            more, which, places = _sources(part)
            parts.append((which + len(sets), places))
            sets += more
        return sets, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True))  # type: ignore[return-value]
    return [items], np.zeros(len(items), dtype=np.int64), np.arange(len(items))


def class_names(items: Any, places: np.ndarray, labels: np.ndarray) -> tuple[str, ...] | None:
    """Class names of a data set, by label.

    None where it has none, and where they may be of other labels than the items yield: its
    `targets` or `labels` differ from these, or a target_transform may have changed them.
    places: rows of items.
    labels: that these items yield.
    """
    kept = None
    for attribute in ("targets", "labels"):
        with suppress(InputError, TypeError):
            kept = class_numbers(getattr(items, attribute, None), attribute, len(items))
            break
    if kept is None and getattr(items, "target_transform", None) is not None:
        return None
    if kept is not None and not np.array_equal(kept[places], labels):
        return None
    numbers = getattr(items, "class_to_idx", None)
    names = getattr(items, "classes", None)
    if isinstance(numbers, Mapping) and sorted(numbers.values()) == list(range(len(numbers))):
        names = sorted(numbers, key=numbers.__getitem__)
    if not isinstance(names, list | tuple | np.ndarray) or not len(names):
        return None
    return tuple(_text(name) for name in names)


def _text(name: Any) -> str:
    return str(name[0] if isinstance(name, tuple) else name)
