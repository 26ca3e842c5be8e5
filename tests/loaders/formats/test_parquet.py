"""Folders of parquet files as Hugging Face's hub has them."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastcat.errors import InputError
from fastcat.loaders.convert import convert, open_source
from fastcat.loaders.formats.source import SPLITS
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import make_folder, noise
from tests.harness.parquet import NAMES, png, write_parquet


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Two training files of 7 and 6 images, one test file of 5."""
    folder = tmp_path / "hub"
    write_parquet(folder / "data/train-00000-of-00002.parquet", range(7))
    write_parquet(folder / "data/train-00001-of-00002.parquet", range(7, 13))
    write_parquet(folder / "data/test-00000-of-00001.parquet", range(20, 25))
    return folder


def expected(seeds: range) -> np.ndarray:
    return np.stack([noise(seed) for seed in seeds])


def converted(folder: Path, **settings: Any) -> Any:
    return convert(str(folder), folder.with_name("out.packed"), data_dir=folder, **settings).dataset


def test_images_labels_and_class_names(hub: Path) -> None:
    data = converted(hub)
    assert np.array_equal(data.train.images, expected(range(13)))
    assert np.array_equal(data.test.images, expected(range(20, 25)))
    assert data.train.labels.tolist() == [seed % 3 for seed in range(13)]
    assert data.classes == tuple(NAMES)


@pytest.mark.parametrize("start", range(14))
def test_reading_goes_on_at_any_row(hub: Path, start: int) -> None:
    source = open_source(str(hub), hub)
    source.shape()
    images = [block.images for block in source.blocks("train", start)]
    found = np.concatenate([np.empty((0, 8, 8, 3), np.uint8), *images])
    assert np.array_equal(found, expected(range(13))[start:])


def test_other_column_names_and_no_class_names(tmp_path: Path) -> None:
    folder = tmp_path / "cifar100"
    for split in SPLITS:
        path = folder / f"{split}-00000-of-00001.parquet"
        write_parquet(path, range(6), image="img", label="fine_label", names=None)
    assert converted(folder).classes == ("0", "1", "2")


def test_a_test_split_without_labels_gives_way_to_validation(hub: Path) -> None:
    write_parquet(hub / "data/test-00000-of-00001.parquet", range(5), labels=[-1] * 5)
    write_parquet(hub / "data/validation-00000-of-00001.parquet", range(40, 44))
    assert np.array_equal(converted(hub).test.images, expected(range(40, 44)))


def test_unreadable_rows_are_named_or_left_out(hub: Path) -> None:
    cells = [{"bytes": png(seed), "path": None} for seed in range(7)]
    cells[2] = {"bytes": b"no image", "path": None}
    cells[5] = {"bytes": None, "path": "x.png"}
    write_parquet(hub / "data/train-00000-of-00002.parquet", range(7), cells=cells)
    with pytest.raises(InputError, match=r"2 of 18 .*00002.parquet row 2' is not an image.*row 5'"):
        converted(hub)
    assert len(converted(hub, skip_unreadable=True).train) == 11


def test_given_as_data_the_command_that_converts_it_is_named(hub: Path) -> None:
    command = rf"type fastcat data convert {hub} {hub}\.packed"
    with pytest.raises(InputError, match=command):
        load_dataset(str(hub), hub)


def test_without_pyarrow_the_line_that_installs_it_is_named(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        converted(hub)


def test_every_file_names_its_classes_in_an_order_of_its_own(hub: Path) -> None:
    """A second training file and the test file, with names in other orders, fewer, or none."""
    turned, two = ["cow", "ant", "bee"], ["bee", "cow"]
    write_parquet(
        hub / "data/train-00001-of-00002.parquet",
        range(7, 13),
        names=turned,
        labels=[turned.index(NAMES[seed % 3]) for seed in range(7, 13)],
    )
    seeds = [20, 22, 23]
    write_parquet(
        hub / "data/test-00000-of-00001.parquet",
        range(3),
        names=two,
        labels=[two.index(NAMES[seed % 3]) for seed in seeds],
    )
    data = converted(hub)
    assert data.classes == tuple(NAMES)
    assert data.train.labels.tolist() == [seed % 3 for seed in range(13)]
    assert data.test.labels.tolist() == [seed % 3 for seed in seeds]


@pytest.mark.parametrize("unnamed", ["train-00000-of-00002", "train-00001-of-00002"])
def test_a_file_without_names_goes_by_number(hub: Path, unnamed: str) -> None:
    rows = range(7) if "00000-of" in unnamed else range(7, 13)
    write_parquet(hub / f"data/{unnamed}.parquet", rows, names=None)
    data = converted(hub)
    assert data.classes == tuple(NAMES)
    assert data.train.labels.tolist() == [seed % 3 for seed in range(13)]


def spoiled(name: str, **how: Any) -> Callable[[Path], object]:
    return lambda hub: write_parquet(hub / "data" / f"{name}.parquet", range(3), **how)


TEST, TRAIN = "test-00000-of-00001", "train-00000-of-00002"
REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing file": (
        lambda hub: (hub / f"data/{TRAIN}.parquet").unlink(),
        "1 train files, but .* is one of 2",
    ),
    "no test": (lambda hub: (hub / f"data/{TEST}.parquet").unlink(), "no test-.*put one beside"),
    "no labels": (spoiled(TEST, labels=[-1, -1, -1]), "no test-.*with labels"),
    "a label too many": (spoiled(TEST, labels=[0, 1, 3]), "test labels .* expected 0 to 2"),
    "an empty label": (spoiled(TRAIN, labels=[0, None, 2]), "empty rows"),
    "labels of text": (spoiled(TRAIN, labels=["ant", "bee", "cow"]), "is string, expected integ"),
    "another class": (
        spoiled(TEST, names=["ant", "bee", "elk"]),
        "test-.*parquet has 3 classes, .* 'elk' is none of the 3 of .*train-00000",
    ),
    "a label without a name": (spoiled(TEST, names=["ant", "bee"]), "run from 0 to 2, expected"),
    "a class twice": (spoiled(TEST, names=["ant", "ant", "bee"]), "has 2 of the name 'ant'"),
    "other columns": (spoiled(TEST, image="img"), "its images in img and its labels in label, but"),
    "no image column": (spoiled(TRAIN, image="photo"), "columns number, label, photo, expected"),
    "images of text": (spoiled(TRAIN, cells=["a", "b", "c"]), "expected a struct with the bytes"),
    "not parquet": (
        lambda hub: (hub / f"data/{TRAIN}.parquet").write_bytes(b"PAR1 no PAR1"),
        "damaged or not parquet",
    ),
    "empty": (lambda hub: (hub / f"data/{TRAIN}.parquet").write_bytes(b""), "damaged or not parq"),
}


@pytest.mark.parametrize(("spoil", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_in_one_line_and_nothing_is_left(
    hub: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(hub)
    with pytest.raises(InputError, match=words) as caught:
        converted(hub)
    assert len(str(caught.value).splitlines()) == 1
    assert list(hub.parent.iterdir()) == [hub]


@pytest.mark.parametrize("inner", ["data", "plain_text"])
def test_the_root_of_a_repository_is_the_data(hub: Path, tmp_path: Path, inner: str) -> None:
    digest = convert(str(hub), tmp_path / "a.packed", data_dir=tmp_path).dataset.digest
    (hub / "data").rename(hub / inner)
    for name in ("README.md", ".gitattributes", "dataset_infos.json"):
        (hub / name).write_text("of the hub")
    (hub / ".git").mkdir()
    again = convert(str(hub), tmp_path / "b.packed", data_dir=tmp_path).dataset
    assert again.digest == digest
    with pytest.raises(InputError, match=r"type fastcat data convert \S+hub \S+hub\.packed"):
        load_dataset(str(hub), tmp_path)


def test_of_several_configurations_one_is_asked_for(hub: Path, tmp_path: Path) -> None:
    (hub / "data").rename(hub / "large")
    write_parquet(hub / "small/train-00000-of-00001.parquet", range(4))
    with pytest.raises(InputError, match=r"configurations, large, small: type .* as \S+large$"):
        convert(str(hub), tmp_path / "x.packed", data_dir=tmp_path)
    done = convert(str(hub / "large"), tmp_path / "x.packed", data_dir=tmp_path)
    assert len(done.dataset.train) == 13


@pytest.mark.parametrize(
    "name",
    ["default/train/0000.parquet", "data.parquet", "train/data-00000-of-00001.arrow", "data/0.tar"],
)
def test_other_forms_of_the_same_data_are_refused_with_what_to_do(
    tmp_path: Path, name: str
) -> None:
    file = tmp_path / "hub" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    for attempt in (load_dataset, partial(convert, out=tmp_path / "x.packed")):
        with pytest.raises(InputError, match=rf"holds {name}, but no train-.*to_parquet\("):
            attempt(str(tmp_path / "hub"), data_dir=tmp_path)  # type: ignore[operator]


def test_archives_beside_a_folder_of_images_do_not_matter(images: Path) -> None:
    for name in ("pets.tar", "labels.parquet", "test/._x.tar"):
        (images / name).write_bytes(b"x")
    (images / "more").mkdir()
    (images / "more/labels.parquet").write_bytes(b"x")
    assert len(load_dataset(str(images), images).train) == 10


def test_a_pointer_of_git_lfs_is_called_one(hub: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (hub / "data/train-00000-of-00002.parquet").write_text(pointer)
    with pytest.raises(InputError, match=r"00000-of-00002\.parquet is a pointer .* git lfs pull"):
        convert(str(hub), tmp_path / "x.packed", data_dir=tmp_path)


def test_the_folder_that_holds_the_folder_of_images_says_so(tmp_path: Path) -> None:
    make_folder(tmp_path / "outer" / "data")
    with pytest.raises(InputError, match=r"has no folder train/.*; or is it \S+outer/data"):
        load_dataset(str(tmp_path / "outer"), tmp_path)
