"""What `fastcat data info` and `verify` say: contents of a data set, and suspicious images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .dataset import Dataset, Split, channel_statistics
from .formats.source import SPLITS, rows_at_once

_SHOWN = 3
_UNBALANCED = 3  # times as many images in the largest class as in the smallest


@dataclass(frozen=True)
class Counts:
    """Images of a split in all, and the fewest, median and most of a class."""

    images: int
    fewest: int
    median: float
    most: int


def counts(dataset: Dataset) -> dict[str, Counts]:
    found = {}
    for name, split in _splits(dataset):
        each = np.bincount(split.labels, minlength=len(dataset.classes))
        found[name] = Counts(len(split), int(each.min()), float(np.median(each)), int(each.max()))
    return found


def describe(dataset: Dataset) -> list[str]:
    """Lines about classes, counts, image size, mean, standard deviation, bytes and digest."""
    height, width, channels = dataset.image_shape
    mean, std = channel_statistics(dataset.train.images)
    size = sum(len(split) * height * width * channels for _, split in _splits(dataset))
    lines = [
        f"name      {dataset.name}",
        f"classes   {len(dataset.classes)}: {_some(dataset.classes)}",
    ]
    for name, count in counts(dataset).items():
        lines.append(
            f"{name:9} {count.images} images, {count.fewest} to {count.most} a class "
            f"(median {count.median:g})"
        )
    return [
        *lines,
        f"images    {width} x {height} pixels, {channels} channel{'s' if channels > 1 else ''}, "
        f"{size / 1e6:.1f} MB",
        f"mean      {_numbers(mean)} of the training images' pixels in [0, 1]",
        f"std       {_numbers(std)}",
        f"augment   crop with {dataset.crop_pad} pixels of padding, "
        f"{'mirrored' if dataset.flip else 'not mirrored'}",
        f"digest    {dataset.digest}",
    ]


def findings(dataset: Dataset) -> list[str]:
    """Sentences about repeated images, images of one colour, and unequal classes.

    It holds 16 bytes an image in memory.
    """
    notes = []
    keys = {}
    for name, split in _splits(dataset):
        keys[name], blank = _scan(split)
        if len(blank):
            notes.append(f"{len(blank)} {name} images are of one colour: {_some(blank.tolist())}")
        notes += _repeated(name, keys[name], split.labels)
    notes += _shared(keys)
    for name, count in counts(dataset).items():
        if count.fewest == 0:
            notes.append(f"some classes have no {name} images")
        elif count.most > _UNBALANCED * count.fewest:
            notes.append(f"the {name} classes are unequal: {count.fewest} to {count.most} images")
    return notes


def _splits(dataset: Dataset) -> Iterator[tuple[str, Split]]:
    yield from zip(SPLITS, (dataset.train, dataset.test), strict=True)


def _scan(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the images' pixels, uint64 [N, 2], and numbers of the images of one colour."""
    size = rows_at_once(int(np.prod(split.images.shape[1:])))
    keys = bytearray()
    blank = []
    for begin in range(0, len(split), size):
        part = np.ascontiguousarray(split.images[begin : begin + size])
        for image in part:
            keys += hashlib.blake2b(image.data, digest_size=16).digest()
        constant = (part == part[:, :1, :1]).all((1, 2, 3))
        blank.append(begin + np.flatnonzero(constant))
    return np.frombuffer(keys, dtype="u8").reshape(-1, 2), np.concatenate(blank)


def _repeated(name: str, keys: np.ndarray, labels: np.ndarray) -> list[str]:
    """Sentences about images of a split that equal an earlier one."""
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    earlier = first[inverse.ravel()]
    again = np.flatnonzero(earlier != np.arange(len(keys)))
    if not len(again):
        return []
    pairs = _some([f"{earlier[place]} = {place}" for place in again[:_SHOWN]], len(again))
    notes = [f"{len(again)} {name} images repeat an earlier one: {pairs}"]
    other = again[labels[again] != labels[earlier[again]]]
    if len(other):
        pairs = _some([f"{earlier[place]} and {place}" for place in other[:_SHOWN]], len(other))
        notes.append(f"{len(other)} of these have another label: {pairs}")
    return notes


def _shared(keys: dict[str, np.ndarray]) -> list[str]:
    """Sentences about test images that are training images too."""
    test = len(keys["test"])
    both = np.concatenate([keys["test"], keys["train"]])
    _, first, inverse = np.unique(both, axis=0, return_index=True, return_inverse=True)
    kinds = inverse.ravel()
    shared = np.isin(kinds[:test], kinds[test:])
    if not shared.any():
        return []
    train = np.flatnonzero(first[kinds[test:]] < test)
    pairs = [f"train {place} = test {first[kinds[test + place]]}" for place in train[:_SHOWN]]
    return [f"{shared.sum()} test images are training images too: {_some(pairs, len(train))}"]


def _some(items: Sequence[object], total: int | None = None) -> str:
    total = len(items) if total is None else total
    return ", ".join(map(str, items[:_SHOWN])) + (", ..." if total > _SHOWN else "")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
