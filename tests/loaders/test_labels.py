"""Labels mean the same in every form and by every way, and the same ones are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from fastcat.errors import InputError
from fastcat.loaders.convert import convert, open_source
from fastcat.loaders.dataset import Dataset, Split
from fastcat.loaders.extra_file import load_extra
from fastcat.loaders.formats.beton import write_beton
from fastcat.loaders.items import from_items
from fastcat.loaders.labels import class_number, class_numbers
from fastcat.loaders.registry import load_dataset
from tests.harness.parquet import png
from tests.harness.random_images import random_dataset

NUMBERS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 9, 3), dtype=np.uint8)
BOTH = {"x_train": IMAGES, "x_test": IMAGES}


def of_items(labels: Any, folder: Path) -> np.ndarray:
    items = list(zip(IMAGES, labels, strict=True))
    return from_items(items, items, crop_pad=1).train.labels


def of_npz(labels: Any, folder: Path) -> np.ndarray:
    np.savez(folder / "x.npz", **BOTH, y_train=labels, y_test=labels)
    return load_dataset(str(folder / "x.npz"), folder).train.labels


def of_pack(labels: Any, folder: Path) -> np.ndarray:
    np.savez_compressed(folder / "x.npz", **BOTH, y_train=labels, y_test=labels)
    convert(str(folder / "x.npz"), folder / "x.packed", data_dir=folder)
    return load_dataset(str(folder / "x.packed"), folder).train.labels


def of_extra(labels: Any, folder: Path) -> np.ndarray:
    np.savez(folder / "e.npz", image=IMAGES, label=labels)
    return load_extra(folder / "e.npz", 0.5, random_dataset()).split.labels


def of_hand(labels: Any, folder: Path) -> np.ndarray:
    split = Split(IMAGES, labels)
    return Dataset(
        name="own", classes=("0", "1"), train=split, test=split, crop_pad=0, flip=False, digest=""
    ).train.labels


def of_parquet(labels: Any, folder: Path) -> np.ndarray:
    cells = [{"bytes": png(seed), "path": None} for seed in range(8)]
    train = pyarrow.array(labels.tolist() if labels.ndim > 1 else labels)
    for part, column in (("train", train), ("test", [0] * 8)):
        table = pyarrow.table({"image": cells, "label": column})
        pyarrow.parquet.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    return open_source(str(folder), folder).labels["train"]


def of_beton(labels: Any, folder: Path) -> np.ndarray:
    """Files of FFCV's, which know one type only."""
    (folder / "x.beton").mkdir()
    for part in ("train", "test"):
        write_beton(folder / f"x.beton/{part}.beton", Split(IMAGES, labels))
    return load_dataset(str(folder / "x.beton"), folder).train.labels


WAYS = {w.__name__: w for w in (of_items, of_npz, of_pack, of_extra, of_hand, of_parquet, of_beton)}
Way = Callable[[Any, Path], np.ndarray]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ["i1", "u1", ">i2", "<u2", ">i4", "<u4", "<i8", ">i8", ">u8", "?"])
def test_labels_of_every_type_are_the_same_classes(kind: str, way: Way, tmp_path: Path) -> None:
    if way is of_parquet:
        kind = kind.replace(">", "<")  # Arrow has one byte order
    found = way(NUMBERS.astype(kind), tmp_path)
    assert found.dtype == np.dtype(np.int64)
    assert found.dtype.isnative
    assert np.array_equal(found, NUMBERS)


@pytest.mark.parametrize("way", [of_items, of_npz, of_pack, of_extra, of_hand])
def test_a_column_of_labels_is_a_row_of_them(way: Way, tmp_path: Path) -> None:
    assert np.array_equal(way(NUMBERS[:, None], tmp_path), NUMBERS)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (NUMBERS.astype("f8"), "expected (the number of its class, an )?integer"),
        (NUMBERS / 2, "expected (the number of its class, an )?integer"),
        (np.eye(2, dtype=int)[NUMBERS], r"one-hot rows? give \.argmax|list<.*, expected int"),
        (NUMBERS.astype(str), "expected (the number of its class, an )?integer"),
        (NUMBERS - 1, "run from -1 to 0"),
        (NUMBERS.astype("u8") * np.uint64(2**63), "run from -9223372036854775808 to 0"),
        (NUMBERS * 2**40, "never occur|run from 0 to"),
    ],
    ids=["floats", "halves", "one-hot", "text", "negative", "beyond int64", "absurd"],
)
def test_what_is_no_class_is_refused_in_one_sentence(
    labels: np.ndarray, text: str, way: Way, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text) as caught:
        way(labels, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("way", [way for way in WAYS.values() if way is not of_extra])
def test_one_class_is_refused_in_the_same_sentence(way: Way, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has only one class, '0': at least two are needed$"):
        way(np.zeros(8, int), tmp_path)


@pytest.mark.parametrize("way", [way for way in WAYS.values() if way is not of_extra])
def test_a_class_that_never_occurs_is_refused(way: Way, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 of them, such as 1, never occur|expected 0 to 1"):
        way(NUMBERS * 2, tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        NUMBERS.tolist(),
        tuple(NUMBERS.astype(bool).tolist()),
        list(NUMBERS.astype("u2")),
        list(NUMBERS[:, None]),
        [np.array(number, ">i4") for number in NUMBERS],
        torch.from_numpy(NUMBERS),
        torch.from_numpy(NUMBERS)[:, None].to(torch.int32),
        list(torch.from_numpy(NUMBERS).to(torch.uint8)),
        NUMBERS.astype(object),
    ],
)
def test_labels_may_be_in_any_container(labels: Any) -> None:
    found = class_numbers(labels, "they", 8)
    assert found.dtype == np.int64
    assert np.array_equal(found, NUMBERS)
    assert [class_number(label, "it") for label in labels] == NUMBERS.tolist()


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (1.0, "is 1.0, expected the number"),
        (torch.tensor(1.0).bfloat16(), "is 1.0, expected"),
        (None, "is None"),
        ("cat", "is 'cat'"),
        ({"label": 1}, "is {'label': 1}"),
        ([[1], [2, 3]], r"is object \[2\]"),
        (2**70, "is 1180591620717411303424"),
        (np.eye(3)[1], r"is float64 \[3\], .* of a one-hot row give .argmax"),
        (np.zeros(0, int), r"is int64 \[0\]"),
    ],
)
def test_a_label_that_is_no_number_is_shown(label: Any, text: str) -> None:
    with pytest.raises(InputError, match=f"label of it {text}"):
        class_number(label, "it")


@pytest.mark.parametrize("labels", [[0] * 7, [0] * 9, 3, [[0, 1], [1]], None])
def test_as_many_labels_as_images_are_expected(labels: Any) -> None:
    with pytest.raises(InputError, match=r"they are .* expected integers \[8\]"):
        class_numbers(labels, "they", 8)
