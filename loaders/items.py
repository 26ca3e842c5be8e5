"""Map-style data sets of (image, label), such as torchvision's, as a `Dataset`, read item by item.

An image is a PIL image, a uint8 array [H, W, C] or [H, W], or a tensor [C, H, W], uint8 or float in
[0, 1]; a label is an integer. Random transforms draw from the workers' own random state, which the
loader seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcat.errors import InputError
from fastcat.guard import check_images

from .class_names import match, numbered
from .dataset import Dataset, Split, check_layout
from .formats.decode import UnusableError, grey_or_colour
from .formats.digest import array_checksum, dataset_digest
from .item_labels import known_labels, named
from .labels import as_array, check_labels, class_number, count_classes


class ItemImages:
    """The images of a map-style data set, [N, H, W, C], read one by one when indexed.

    Its `labels`, int64 [N], are those that the items yield.
    items: the data set.
    part: "train" or "test", for errors.
    Raises InputError for items of another form.
    """

    def __init__(self, items: Any, part: str) -> None:
        self.items = items
        self.part = part
        first, label = read_item(items, 0, part)
        self.shape = (len(items), *first.shape)
        self.dtype = first.dtype
        known = known_labels(items)
        if known is None:
            rest = (self._read(row)[1] for row in range(1, len(items)))
            known = np.array([label, *rest], dtype=np.int64)
        self.labels = known

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Images [n, H, W, C] of a slice or an array of rows.

        Raises InputError for an image unlike the first, and for a label that has changed.
        """
        rows = np.arange(len(self))[rows]
        return np.stack([self.item(int(row)) for row in rows])

    def item(self, row: int) -> np.ndarray:
        image, label = self._read(row)
        if label != self.labels[row]:
            raise InputError(
                f"{self.part} image {row} had the label {self.labels[row]} and has {label} now: "
                "an item has to yield the same label every time"
            )
        return image

    def _read(self, row: int) -> tuple[np.ndarray, int]:
        image, label = read_item(self.items, row, self.part)
        _check_like(f"{self.part} image {row}", image.shape, image.dtype, self)
        return image, label


def read_item(items: Any, row: int, part: str) -> tuple[np.ndarray, int]:
    """The image of an item, as of `to_array`, and its label. Raises InputError for other items."""
    item = items[row]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise InputError(
            f"{part} item {row} is {_form(item)}, expected (image, label): give a data set whose "
            "items are just these two"
        )
    what = f"{part} image {row}"
    return to_array(item[0], what), class_number(item[1], what)


def _form(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a {type(item).__name__} of {', '.join(map(repr, item))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)} values"
    return f"a {type(item).__name__}"


def to_array(image: Any, what: str = "an image") -> np.ndarray:
    """An image as array [H, W, C], uint8 or float32 in [0, 1].

    image: PIL image of at most 8 bits a channel, array [H, W] or [H, W, C], or tensor [H, W] or
        [C, H, W].
    what: what the error calls it.
    Raises InputError for anything else.
    """
    remedy = "give an array [height, width, channels], as by image.transpose(1, 2, 0)"
    if isinstance(image, Image.Image):
        image = _pixels(image, what)
    array = as_array(image)
    shape = array.shape
    if isinstance(image, Tensor) and array.ndim == 3:
        remedy = "give a tensor [channels, height, width], as by image.permute(2, 0, 1)"
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise InputError(f"{what} has shape {shape}, expected height, width and channels")
    check_layout(array.shape, f"{what}, of shape {list(shape)},", remedy)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InputError(f"{what} is of {array.dtype}, expected uint8 or floats in [0, 1]")
    array = array.astype(np.float32)
    try:
        check_images(torch.from_numpy(array))
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    return array


def _pixels(image: Image.Image, what: str) -> np.ndarray:
    try:
        return np.asarray(grey_or_colour(image))
    except UnusableError as error:
        raise InputError(f"{what} {error}: give 8 bits, or floats in [0, 1]") from error
    except ValueError as error:
        raise InputError(
            f"{what} is of Pillow's mode {image.mode}, which it cannot convert: give L or RGB"
        ) from error


def _check_like(what: str, shape: tuple[int, ...], dtype: np.dtype, like: ItemImages) -> None:
    """Raises InputError for an image of another shape or dtype than the first of `like`."""
    first = like.shape[1:]
    if (shape, dtype) == (first, like.dtype):
        return
    if shape[:2] != first[:2]:
        remedy = f"put transforms.Resize(({first[0]}, {first[1]})) into the data set's transform"
    elif shape != first:
        remedy = (
            "give all of them the same channels, grey and colour images three of them, as by "
            "torchvision.transforms.v2.RGB() in the data set's transform"
        )
    else:
        remedy = "give all of them as uint8, or all as floats in [0, 1]"
    raise InputError(
        f"{what} is {dtype} {shape}, but the first {like.part} image is {like.dtype} {first}: "
        f"{remedy}"
    )


def from_items(
    train: Any,
    test: Any,
    *,
    classes: Sequence[str] | None = None,
    name: str = "own",
    crop_pad: int = 0,
    flip: bool = False,
) -> Dataset:
    """A Dataset of two map-style data sets of (image, label), for `fastcat.train(config, dataset)`.

    Labels are those that the items yield: each item is read once to know them, unless torchvision
    keeps them apart from the images. Where both sets have class names, the labels of `test` are
    matched with those of `train` by name. The digest covers names, labels and a few images.
    train, test: data sets with a length, whose items are (image, label).
    classes: names by label. None: `train.classes` if they are of these labels, else numbers.
    name: of the data set, for records and errors.
    crop_pad: pixels of zero padding for the random crop.
    flip: whether images are mirrored at random.
    Raises InputError for items that no batch can be made of, and names that do not match.
    """
    images, labels, names = _read(train, "train")
    test_images, test_labels, test_names = _read(test, "test")
    _check_like("test image 0", test_images.shape[1:], images.dtype, images)
    both = np.concatenate([labels, test_labels])
    given = names if classes is None else tuple(map(str, classes))
    if given is None:
        given = numbered(
            count_classes(both, "train and test", name, ", or name them all by classes=")
        )
    if test_names is not None:
        own = given if names is None else names
        label_of = match(test_names, "the test data set", own, "the train data set")
        test_labels = label_of[test_labels]
    splits = Split(images, labels), Split(test_images, test_labels)
    samples = [split.images[:: max(1, len(split) // 8)] for split in splits]
    return Dataset(
        name=name,
        classes=given,
        train=splits[0],
        test=splits[1],
        crop_pad=crop_pad,
        flip=flip,
        digest=dataset_digest(
            given, map(array_checksum, [np.concatenate([labels, test_labels]), *samples])
        ),
    )


def _read(items: Any, part: str) -> tuple[ItemImages, np.ndarray, tuple[str, ...] | None]:
    """Images, labels [N] and class names; None: the data set has no names."""
    if not all(hasattr(type(items), name) for name in ("__len__", "__getitem__")):
        raise InputError(
            f"the {part} data set is a {type(items).__name__}, expected one of (image, label) by "
            "number, which has a length"
        )
    if not len(items):
        raise InputError(f"the {part} data set is empty")
    images = ItemImages(items, part)
    labels, names = named(items, images.labels, part)
    if names is not None:
        check_labels(labels, part, len(names), f"the {part} data set")
    return images, labels, names
