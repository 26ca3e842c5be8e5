"""`fastcat data info` and `verify`: what they find, and pictures with the right pixels."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.loaders import inspection
from fastcat.loaders.contact_sheet import CELL, GAP, NAMES, make_sheet, write_sheet
from fastcat.loaders.dataset import Dataset, Split
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.inspection import counts, describe, findings
from tests.harness.image_folders import make_folder, noise


def made(train: int = 6, test: int = 4, classes: int = 2, **form: int) -> Dataset:
    """Noise, labels 0, 1, 0, 1, ..."""
    pixels = [noise(seed, **form) for seed in range(train + test)]
    images = np.stack(pixels).reshape(train + test, *pixels[0].shape[:2], -1)
    labels = np.arange(train + test) % classes
    return Dataset(
        name="made",
        classes=tuple(f"class{k}" for k in range(classes)),
        train=Split(images[:train].copy(), labels[:train]),
        test=Split(images[train:].copy(), labels[train:]),
        crop_pad=1,
        flip=True,
        digest="0" * 64,
    )


def test_nothing_is_found_in_noise() -> None:
    assert findings(made()) == []


def test_images_of_both_splits_are_found() -> None:
    data = made()
    data.test.images[1] = data.train.images[4]
    data.test.images[3] = data.train.images[4]
    data.test.images[2] = data.train.images[0]
    assert findings(data) == [
        "1 test images repeat an earlier one: 1 = 3",
        "3 test images are training images too: train 0 = test 2, train 4 = test 1",
    ]


def test_images_that_repeat_are_counted_once_each_and_labels_compared() -> None:
    data = made(train=8)
    data.train.images[2] = data.train.images[0]
    data.train.images[4] = data.train.images[0]
    data.train.images[7] = data.train.images[6]
    assert findings(data) == [
        "3 train images repeat an earlier one: 0 = 2, 0 = 4, 6 = 7",
        "1 of these have another label: 6 and 7",
    ]


def test_one_pixel_makes_another_image() -> None:
    data = made()
    data.test.images[1] = data.train.images[4]
    data.test.images[1, 7, 7, 2] ^= 1
    assert findings(data) == []


def test_blank_images_are_found() -> None:
    data = made()
    data.train.images[1] = (7, 8, 9)
    data.test.images[0] = 0
    data.train.images[2] = np.arange(8)[None, :, None]
    data.train.images[3] = np.arange(8)[:, None, None]
    assert findings(data) == [
        "1 train images are of one colour: 1",
        "1 test images are of one colour: 0",
    ]


def test_unequal_and_empty_classes_are_found() -> None:
    data = made(train=12)
    data.train.labels[:10] = 0
    data.train.labels[10:] = 1
    data.test.labels[:] = 1
    assert findings(data) == [
        "the train classes are unequal: 2 to 10 images",
        "some classes have no test images",
    ]


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(train=9)
    data.train.images[8] = data.train.images[1]
    data.train.images[5] = 3
    data.test.images[0] = data.train.images[7]
    whole = findings(data)
    assert len(whole) == 4
    monkeypatch.setattr(inspection, "rows_at_once", lambda _: 2)
    assert findings(data) == whole


def test_counts_and_description() -> None:
    data = made(train=7, classes=3)
    found = counts(data)["train"]
    assert (found.images, found.fewest, found.median, found.most) == (7, 2, 2.0, 3)
    text = "\n".join(describe(data))
    assert "3: class0, class1, class2" in text
    assert "7 images, 2 to 3 a class (median 2)" in text
    assert "8 x 8 pixels, 3 channels" in text
    mean = data.train.images.mean((0, 1, 2)) / 255
    assert " ".join(f"{value:.4f}" for value in mean) in text
    assert data.digest in text


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_shows_each_class_in_its_row_magnified_without_smoothing(channels: int) -> None:
    data = made(train=24, classes=12, channels=channels)
    sheet = np.asarray(make_sheet(data))
    factor = CELL // 8
    step = CELL + GAP
    assert sheet.shape == (10 * step + GAP, NAMES + 10 * step + GAP, 3)
    for label in range(10):
        for k in range(2):
            top, left = GAP + label * step, NAMES + k * step
            cell = sheet[top : top + CELL, left : left + CELL]
            expected = np.broadcast_to(data.train.images[label + 12 * k], (8, 8, 3))
            assert np.array_equal(cell, expected.repeat(factor, 0).repeat(factor, 1))
        name = sheet[GAP + label * step :][:CELL, :NAMES]
        assert name.min() < 100, "no name"


def test_the_sheet_is_a_png_and_overwrites_nothing(tmp_path: Path) -> None:
    write_sheet(made(), tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        assert image.format == "PNG"
    with pytest.raises(InputError, match="exists already"):
        write_sheet(made(), tmp_path / "s.png")
    with pytest.raises(InputError, match=r"ending in \.png"):
        write_sheet(made(), tmp_path / "s.jpg")


def test_both_commands_on_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_folder(tmp_path / "pets")
    (path / "test/cat/0.png").write_bytes((path / "train/dog/1.png").read_bytes())
    digest = load_folder(path).digest
    assert main(["data", "info", str(path), "--sheet", str(tmp_path / "pets.png")]) == 0
    assert digest in capsys.readouterr().out
    assert (tmp_path / "pets.png").exists()
    assert main(["data", "verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "note: 1 test images are training images too: train 6 = test 0" in out
    assert re.search("14 images are whole, 1 notes", out)


def test_damage_is_found_by_verify(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_folder(images)
    array = images.with_name("pets.packed") / "train-images.npy"
    raw = bytearray(array.read_bytes())
    raw[-7] ^= 8
    array.write_bytes(raw)
    assert main(["data", "verify", f"{images}.packed"]) == 2
    assert "train-images.npy is damaged" in capsys.readouterr().err
