"""`fastcat data convert` of every kind of source, whole or not at all, and what it says."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.loaders.convert import convert
from fastcat.loaders.dataset import Dataset
from fastcat.loaders.formats import beton_folder
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import beside, make_folder

CHECKOUT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "fastcat", "data", "convert"]


def test_a_data_set_by_name_keeps_its_digest_and_augmentation(tmp_path: Path) -> None:
    """So that a run on one may go on with the other."""
    done = convert("digits", tmp_path / "digits.packed", data_dir=tmp_path)
    digits = load_dataset("digits", tmp_path)
    data = load_dataset(str(tmp_path / "digits.packed"), tmp_path)
    assert np.array_equal(data.train.images, digits.train.images)
    assert np.array_equal(data.test.labels, digits.test.labels)
    assert data.digest == done.dataset.digest == digits.digest
    assert (data.classes, data.crop_pad, data.flip) == (digits.classes, 0, False)
    assert (done.read, done.skipped, done.notes) == (1797, 0, ())


def test_a_pack_is_a_source_too(images: Path, tmp_path: Path) -> None:
    first = load_folder(images)
    again = convert(str(images) + ".packed", tmp_path / "b.packed", data_dir=tmp_path).dataset
    assert again.digest == first.digest
    small = convert(
        str(images) + ".packed", tmp_path / "c.packed", data_dir=tmp_path, resize=32
    ).dataset
    assert (small.image_shape, small.crop_pad) == ((32, 32, 3), 4)


def test_a_folder_s_pack_elsewhere_is_the_same_data(images: Path, tmp_path: Path) -> None:
    elsewhere = convert(str(images), tmp_path / "x.packed", data_dir=tmp_path).dataset
    assert beside(images) == {"x.packed"}
    assert load_folder(images).digest == elsewhere.digest
    assert elsewhere.name == "x"


def test_images_of_all_sizes_are_resized(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "photos", height=40, width=20)
    Image.new("L", (9, 70)).save(path / "train/cat/0.png")
    done = convert(str(path), tmp_path / "p.packed", data_dir=tmp_path, resize=16)
    assert done.dataset.image_shape == (16, 16, 3)
    assert done.dataset.crop_pad == 2


def test_betons_are_written_from_a_pack_that_does_not_stay(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Dataset] = []

    def write(dataset: Dataset, folder: Path, progress: object) -> None:
        seen.append(dataset)
        assert np.array_equal(dataset.train.labels, [0] * 5 + [1] * 5)
        folder.mkdir()

    monkeypatch.setattr(beton_folder, "write_betons", write)
    convert(str(images), tmp_path / "out.beton", data_dir=tmp_path)
    assert len(seen) == 1
    assert beside(images) == {"out.beton"}


def test_a_hidden_pack_that_a_killed_conversion_left_is_used_if_it_is_of_this_source(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beton_folder, "write_betons", lambda _, folder, __: folder.mkdir())
    hidden = tmp_path / ".out.beton.packed"
    convert(str(images), tmp_path / "whole.packed", data_dir=tmp_path)
    (tmp_path / "whole.packed").rename(hidden)
    assert convert(str(images), tmp_path / "out.beton", data_dir=tmp_path).read == 0
    (tmp_path / "out.beton").rmdir()
    convert("digits", tmp_path / "whole.packed", data_dir=tmp_path)
    (tmp_path / "whole.packed").rename(hidden)
    done = convert(str(images), tmp_path / "out.beton", data_dir=tmp_path)
    assert done.dataset.image_shape == (8, 8, 3)


def test_it_says_what_was_left_out_how_fast_it_was_and_what_is_next(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    (images / "train/cat/0.png").write_bytes(b"no image")
    assert main(["data", "convert", "./pets", "pets.packed", "--skip-unreadable"]) == 0
    out = capsys.readouterr().out
    assert "unreadable: 'train/cat/0.png' is not an image" in out
    assert "note: 1 images could not be read and are left out" in out
    assert "pets.packed: 9 training and 4 test images, 8 x 8 x 3, 2 classes; " in out
    assert "images/s" in out
    assert "next: fastcat train --data pets.packed" in out


def test_unreadable_images_are_listed_and_refused_with_the_option_that_leaves_them_out(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"train/{kind}/{number}.png" for kind in ("cat", "dog") for number in range(3)]
    for name in names:
        (images / name).write_bytes(b"no image")
    assert main(["data", "convert", str(images), str(images.with_name("x.packed"))]) == 2
    out, error = capsys.readouterr()
    assert all(f"unreadable: {name!r} is not an image" in out for name in names)
    assert error.count("\n") == 1
    assert "and 3 more (6 in all)" in error
    assert "--skip-unreadable" in error
    assert beside(images) == set()


@pytest.mark.slow
@pytest.mark.process
def test_killed_as_a_process_it_goes_on(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "pets", train=400, test=10, height=64, width=64)
    command = [*COMMAND, str(path), str(tmp_path / "out.packed")]
    part = tmp_path / ".out.packed.part" / "train-images.npy"
    child = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 1000) and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out.packed").exists()
    assert subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL).returncode == 0
    assert load_dataset(str(tmp_path / "out.packed"), tmp_path).digest == load_folder(path).digest


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_write_one_pack(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "pets", train=200, height=32, width=32)
    command = [*COMMAND, str(path), str(tmp_path / "out.packed")]
    children = [
        subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    # the slower one has waited, or has found the pack of the other before it began
    for child, error in zip(children, errors, strict=True):
        assert child.returncode == 0 or "exists already" in error
    assert 0 in [child.returncode for child in children]
    assert beside(path) == {"out.packed"}
    assert load_dataset(str(tmp_path / "out.packed"), tmp_path).digest == load_folder(path).digest


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "x.npz"
    images, labels = np.zeros((40, 32, 32), np.uint8), np.arange(40) % 2
    if kind == "npz":
        np.savez_compressed(source, x_train=images, y_train=labels, x_test=images, y_test=labels)
    else:
        source = make_folder(tmp_path / "x", train=9, height=32, width=32)
    done = subprocess.run(
        [*COMMAND, str(source), str(tmp_path / "out.packed")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fastcat: no room to pack")
    assert done.stderr.count("\n") == 1
    assert beside(source) == set()


def test_nothing_is_overwritten(images: Path, tmp_path: Path) -> None:
    for make in (Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")):
        out = tmp_path / "out.packed"
        make(out)
        with pytest.raises(InputError, match="exists already"):
            convert(str(images), out, data_dir=tmp_path)
        os.rmdir(out) if out.is_dir() else out.unlink()
