"""Data sets in .npz files, by the names of their arrays:

    x_train, y_train, x_test, y_test                            as Keras has them
    train_images, train_labels, test_images, test_labels        as MedMNIST has them
    images, labels    image, label    x, y    data, labels      one split only

Images are uint8 [N, H, W, C] or [N, H, W] with C 1 or 3, labels integers [N] or [N, 1].
"""

import hashlib
import shlex
import zipfile
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcat.errors import InputError

from ..class_names import numbered
from ..dataset import Dataset, Split
from ..labels import check_label_form, check_splits, choose_test, class_numbers, count_classes
from .digest import array_checksum, dataset_digest
from .npz_arrays import check_crc, header, map_npz, members, npz_digest, opened, stream
from .source import SPLITS, Block, Source, fit_all

_PAIRS = (
    (("x_train", "y_train"), ("x_test", "y_test")),
    (("train_images", "train_labels"), ("test_images", "test_labels")),
)
_SINGLES = (("images", "labels"), ("image", "label"), ("x", "y"), ("data", "labels"))

Keys = dict[str, tuple[str, str]]  # per split, the names of images and labels


@dataclass(frozen=True, kw_only=True)
class NpzSource(Source):
    """Arrays of an .npz file.

    path: the file.
    keys: by split, names of the arrays of images and labels.
    rows: by split, its images in the arrays, ascending; None: all.
    """

    path: Path
    keys: Keys
    rows: dict[str, np.ndarray] | None = None

    def shape(self) -> tuple[int, int, int]:
        with opened(self.path) as archive:
            _, shape = header(archive, self.path, self.keys["train"][0])
        _, height, width, channels = (*shape, 1)[:4]
        side = self.resize
        return (side, side, channels) if side else (height, width, channels)

    def blocks(self, split: str, start: int) -> Generator[Block, None, None]:
        rows = None if self.rows is None else self.rows[split]
        seen = 0
        for begin, images in stream(self.path, self.keys[split][0]):
            if rows is not None:
                first, last = np.searchsorted(rows, (begin, begin + len(images)))
                images = images[rows[first:last] - begin]
            # a compressed array can be read from its start only
            wanted = images[max(0, start - seen) :]
            seen += len(images)
            if len(wanted):
                fitted = fit_all(np.ascontiguousarray(_with_channels(wanted)), self.resize)
                yield Block(fitted, np.ones(len(fitted), dtype=bool))


def npz_source(
    path: Path, resize: int | None = None, test_fraction: float | None = None, seed: int = 0
) -> NpzSource:
    """The source of an .npz file, after its headers were checked and its labels read.

    resize: side in pixels that all images get; None: they stay as they are.
    test_fraction: share of each class that becomes the test split, for a file with one split.
    seed: of that draw.
    Raises InputError for arrays that cannot be used.
    """
    with opened(path) as archive:
        names = set(members(archive, path))
        keys = _find(path, names)
        _check_fraction(path, keys, test_fraction)
        shapes = {split: _check_images(archive, path, pair[0]) for split, pair in keys.items()}
        labels = {
            split: _labels(archive, path, pair, shapes[split][0]) for split, pair in keys.items()
        }
    # with resize only the channels must agree
    if len({(*shape, 1)[3 if resize else 1 : 4] for shape in shapes.values()}) > 1:
        raise InputError(
            f"the images of {path} differ in shape, train {shapes['train'][1:]} and test "
            f"{shapes['test'][1:]}: give both one size"
        )
    classes = numbered(count_classes(labels["train"], "train", str(path)))
    check_splits(labels, classes, str(path))
    state, rows = npz_digest(path), None
    if test_fraction is not None:
        is_test = choose_test(labels["train"], test_fraction, seed)
        rows = {"train": np.flatnonzero(~is_test), "test": np.flatnonzero(is_test)}
        labels = {split: labels["train"][rows[split]] for split in SPLITS}
        keys = dict.fromkeys(SPLITS, keys["train"])
        state += f" {test_fraction} {seed}"
        if len(np.unique(labels["train"])) < len(classes) or not len(labels["test"]):
            raise InputError(
                f"with --test-fraction {test_fraction} a split of {path} lacks a class: type "
                "another share, such as --test-fraction 0.2"
            )
    unused = sorted(names - {key for pair in keys.values() for key in pair})
    return NpzSource(
        name=path.stem,
        origin=str(path),
        classes=classes,
        labels=labels,
        digest=hashlib.sha256(state.encode()).hexdigest(),
        resize=resize,
        notes=(f"not used: {', '.join(unused)} of {path}",) if unused else (),
        path=path,
        keys=keys,
        rows=rows,
    )


def load_npz(path: Path) -> Dataset:
    """An uncompressed .npz file with both splits, mapped, after every byte was checked.

    Raises InputError for other files, with the command that converts them.
    """
    source = npz_source(path)
    arrays = map_npz(path)
    with opened(path) as archive:
        for split in SPLITS:
            check_crc(archive, source.keys[split][0])
    train, test = (
        Split(images=_with_channels(arrays[source.keys[split][0]]), labels=source.labels[split])
        for split in SPLITS
    )
    parts = (train.images, train.labels, test.images, test.labels)
    return Dataset(
        name=source.name,
        classes=source.classes,
        train=train,
        test=test,
        crop_pad=max(1, train.images.shape[1] // 8),
        flip=True,
        digest=dataset_digest(source.classes, map(array_checksum, parts)),
    )


def _find(path: Path, there: Collection[str]) -> Keys:
    for pair in _PAIRS:
        if all(key in there for keys in pair for key in keys):
            return dict(zip(SPLITS, pair, strict=True))
    for single in _SINGLES:
        if all(key in there for key in single):
            return {"train": single}
    raise InputError(
        f"{path} has the arrays {', '.join(map(repr, sorted(there))) or '(none)'}, expected "
        "x_train, y_train, x_test, y_test, or train_images, train_labels, test_images, "
        "test_labels, or images, labels: save them under such names"
    )


def _check_fraction(path: Path, keys: Keys, test_fraction: float | None) -> None:
    if "test" in keys:
        if test_fraction is not None:
            raise InputError(f"{path} has a test split of its own: leave --test-fraction out")
    elif test_fraction is None:
        raise InputError(
            f"{path} has one split only ({', '.join(keys['train'])}): type fastcat data "
            f"convert {shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.packed')))} "
            "--test-fraction 0.2 to hold some images of each class out"
        )
    elif not 0 < test_fraction < 1:
        raise InputError(
            f"--test-fraction is {test_fraction}, expected a share between 0 and 1, such as 0.2"
        )


def _check_images(archive: zipfile.ZipFile, path: Path, key: str) -> tuple[int, ...]:
    dtype, shape = header(archive, path, key)
    if dtype != np.uint8:
        raise InputError(_other_type(path, key, dtype))
    channels = (*shape, 1)[3] if len(shape) in (3, 4) else 0
    if channels not in (1, 3) or 0 in shape:
        planes = len(shape) == 4 and shape[1] in (1, 3)
        hint = f"save {key}.transpose(0, 2, 3, 1)" if planes else "save it in that shape"
        raise InputError(
            f"{key} in {path} has shape {shape}, expected [N, H, W] or [N, H, W, C] with 1 or 3 "
            f"channels: {hint}"
        )
    return shape


def _other_type(path: Path, key: str, dtype: np.dtype) -> str:
    if dtype.kind not in "iuf":
        return f"{key} in {path} is {dtype}, expected images of uint8: save it with another name"
    ends = [(part.min(), part.max()) for _, part in stream(path, key) if part.size]
    # np.min and np.max keep NaN
    low, high = (float(np.min(ends)), float(np.max(ends))) if ends else (0.0, 0.0)
    found = f"{key} in {path} is {dtype} from {low:g} to {high:g}, expected uint8 from 0 to 255: "
    if not (low >= 0 and high <= 255):
        return found + "save the pixels themselves, not normalised, as np.uint8"
    scaled = f"({key} * 255).round()" if dtype.kind == "f" and high <= 1 else key
    return found + f"save {scaled}.astype(np.uint8)"


def _labels(archive: zipfile.ZipFile, path: Path, keys: tuple[str, str], images: int) -> np.ndarray:
    key = keys[1]
    dtype, shape = header(archive, path, key)
    what = f"the labels {key} in {path}"
    check_label_form(dtype, shape, what, images)
    return class_numbers(np.concatenate([part for _, part in stream(path, key)]), what, images)


def _with_channels(images: np.ndarray) -> np.ndarray:
    return images if images.ndim == 4 else images[..., np.newaxis]
