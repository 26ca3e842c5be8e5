"""Data sets of torchvision that have a training and a test split of images with one label each."""

import difflib
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcat.errors import InputError

from .class_names import match, numbered
from .formats.archive import data_folder
from .formats.decode import Size, UnusableError, to_pixels
from .formats.digest import array_checksum
from .formats.image_source import ImageFile, ImageFileSource
from .formats.source import SPLITS
from .item_labels import class_names
from .labels import check_labels, check_splits, class_numbers, count_classes

PREFIX = "torchvision:"
# names of the splits in torchvision
_NAMES = {"train": ("train", "trainval"), "test": ("test", "val", "valid")}
# mirror images of these mean something else
_NEVER_FLIPPED = {"MNIST", "EMNIST", "KMNIST", "QMNIST", "USPS", "SVHN", "GTSRB"}


@dataclass(frozen=True, kw_only=True)
class TorchvisionSource(ImageFileSource):
    items: dict[str, Any]

    def image_files(self, split: str, start: int) -> Iterator[ImageFile]:
        for number in range(start, len(self.items[split])):
            yield f"{split} image {number}", partial(_read_item, self.items[split], number)


def torchvision_source(name: str, data_dir: Path, resize: int | None = None) -> TorchvisionSource:
    """The source of torchvision.datasets.NAME, which torchvision downloads unless it is there.

    data_dir: folder of downloads.
    resize: side in pixels that all images get; None: they stay as they are.
    Raises InputError for an unknown name, for a data set without two splits of images with one
    label each, and where it cannot be downloaded.
    """
    make = _find(name)
    with data_folder(name, data_dir) as root:
        items = {split: _make(make, name, root, split) for split in SPLITS}
    labels = {split: _labels(items[split], name) for split in SPLITS}
    train, test = (
        class_names(items[split], np.arange(len(labels[split])), labels[split]) for split in SPLITS
    )
    classes = numbered(count_classes(labels["train"], "train", f"torchvision's {name}"))
    if train is not None and len(train) == len(classes):
        classes = train
    if test is not None:
        check_labels(labels["test"], "test", len(test), f"torchvision's {name}")
        whose, owner = (f"the {split} split of torchvision's {name}" for split in ("test", "train"))
        labels["test"] = match(test, whose, classes, owner)[labels["test"]]
    check_splits(labels, classes, f"torchvision's {name}")
    state = [PREFIX, name, *(array_checksum(labels[split]) for split in SPLITS)]
    return TorchvisionSource(
        name=name.lower(),
        origin=f"{PREFIX}{name}",
        classes=classes,
        labels=labels,
        digest=hashlib.sha256("\0".join(state).encode()).hexdigest(),
        resize=resize,
        flip=name not in _NEVER_FLIPPED,
        items=items,
    )


def _find(name: str) -> Callable[..., Any]:
    from torchvision import datasets

    known = {n: getattr(datasets, n) for n in datasets.__all__ if _is_usable(getattr(datasets, n))}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in known], n=1, cutoff=0.5)
    nearest = [n for n in known if n.lower() in close] or sorted(known)
    raise InputError(
        f"torchvision has no data set {name!r} with a training and a test split of labelled "
        f"images: type {' or '.join(PREFIX + n for n in nearest)}"
    )


def _is_usable(kind: Any) -> bool:
    try:
        names = inspect.signature(kind).parameters.keys()
    except (TypeError, ValueError):
        return False
    return "root" in names and "download" in names and bool({"train", "split"} & names)


def _make(kind: Callable[..., Any], name: str, root: Path, split: str) -> Any:
    if "train" in inspect.signature(kind).parameters:
        choices: list[dict[str, Any]] = [{"train": split == "train"}]
    else:
        choices = [{"split": choice} for choice in _NAMES[split]]
    why: Exception | None = None
    for choice in choices:
        try:
            return kind(root, download=True, **choice)
        except ModuleNotFoundError as error:
            raise InputError(
                f"torchvision's {name} needs {error.name}: type pip install {error.name}"
            ) from error
        except ValueError as error:  # it has no split of that name
            why = error
        except Exception as error:  # torchvision raises many kinds where a download fails
            why = error
            break
    text = " ".join(str(why).split())
    raise InputError(
        f"the {split} split of torchvision's {name} cannot be read or downloaded to {root} "
        f"({text}): fetch it elsewhere and put it there as torchvision's documentation says"
    ) from why


def _labels(items: Any, name: str) -> np.ndarray:
    """Labels int64 [N]: an attribute of torchvision's, else read item by item."""
    for attribute in ("targets", "labels", "_labels"):
        found = getattr(items, attribute, None)
        if found is not None and len(found) == len(items):
            break
    else:
        found = [items[number][1] for number in range(len(items))]
    return class_numbers(found, f"the targets of torchvision's {name}", len(items))


def _read_item(items: Any, number: int, size: Size | int | None) -> np.ndarray:
    try:
        image = items[number][0]
        if not isinstance(image, Image.Image):
            raise UnusableError("is not an image")
        return to_pixels(image.copy(), size)
    except UnusableError:
        raise
    except Exception as error:  # damaged files raise whatever their decoders stumble over
        raise UnusableError(f"is damaged ({' '.join(str(error).split())})") from error
