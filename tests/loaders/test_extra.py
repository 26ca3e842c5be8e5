"""Extra training images: which are refused, what they do to a run, how much memory they take."""

import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastcat.errors import InputError
from fastcat.loaders.convert import convert
from fastcat.loaders.extra_file import load_extra
from fastcat.loaders.formats.folder import load_folder
from tests.harness.image_folders import make_folder
from tests.harness.random_images import random_dataset, random_split
from tests.harness.runs import SMALL, assert_same_end, run_tiny

DATASET = random_dataset()


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_images_and_labels_are_mapped_and_told_apart(tmp_path: Path) -> None:
    split = random_split(30)
    labels = split.labels.astype(np.uint8)
    extra = load_extra(save(tmp_path / "a.npz", image=split.images, label=labels), 0.5, DATASET)
    assert isinstance(extra.split.images, np.memmap)
    assert np.array_equal(extra.split.images, split.images)
    labels = (labels + 1) % 5
    other = load_extra(save(tmp_path / "b.npz", image=split.images, label=labels), 0.5, DATASET)
    assert other.digest != extra.digest


def odd(**changes: np.ndarray) -> dict[str, np.ndarray]:
    split = random_split(30)
    return {"image": split.images, "label": split.labels, **changes}


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": random_split(30).images}, "holds images, expected image and label"),
        (odd(image=random_split(30, 8).images), r"are uint8 \(8, 9, 3\), expected uint8 \(6, 9, 3"),
        (odd(image=random_split(30).images / 255), "are float64"),
        (odd(image=random_split(30, channels=1).images), r"\(6, 9, 1\), expected"),
        (
            odd(image=random_split(30).images.transpose(0, 3, 1, 2)),
            r"save image.transpose\(0, 2, 3,",
        ),
        (odd(label=np.arange(30)), "run from 0 to 29, expected 0 to 4"),
        (odd(label=np.full(30, -1)), "run from -1 to -1"),
        (odd(label=np.zeros(29, dtype=int)), r"int64 \[29\], expected integers \[30\]"),
        (odd(label=np.zeros(30)), "expected integers"),
        (odd(label=np.array([None] * 30)), "Python objects"),
        ({k: v[:0] for k, v in odd().items()}, "empty"),
    ],
)
def test_what_does_not_go_with_the_data_is_refused(
    arrays: dict[str, np.ndarray], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=text):
        load_extra(save(tmp_path / "odd.npz", **arrays), 0.5, DATASET)


@pytest.mark.parametrize("form", ["folder", "packed", "beton"])
def test_classes_of_another_set_are_matched_by_name(form: str, tmp_path: Path) -> None:
    own = load_folder(make_folder(tmp_path / "own", classes=("ant", "bee", "cow")))
    other = make_folder(tmp_path / "other", classes=("bee", "cow"))
    path = tmp_path / f"x.{form}"
    if form == "folder":
        path = other
    else:
        convert(str(other), path, data_dir=tmp_path)
    extra = load_extra(path, 0.5, own)
    assert [own.classes[label] for label in extra.split.labels] == ["bee"] * 5 + ["cow"] * 5
    assert list(extra.remarks) == []
    with pytest.raises(InputError, match=r"own.* has 3 .*'ant' is none of the 2 of other"):
        load_extra(tmp_path / "own", 0.5, load_folder(other))


def test_extra_images_without_names_go_by_number_and_that_is_said(tmp_path: Path) -> None:
    split = random_split(30)
    arrays = {"x_train": split.images, "y_train": split.labels}
    save(tmp_path / "x.npz", **arrays, x_test=split.images, y_test=split.labels)
    convert(str(tmp_path / "x.npz"), tmp_path / "x.packed", data_dir=tmp_path)
    extra = load_extra(tmp_path / "x.packed", 0.5, DATASET)
    assert np.array_equal(extra.split.labels, split.labels)
    (remark,) = extra.remarks
    assert remark.endswith("x.packed, 0, 1, 2, ..., go by number as those of random, a, b, c, ...")


def test_compressed_and_damaged_files_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", **odd())
    with pytest.raises(InputError, match=r"compressed .*fastcat data convert"):
        load_extra(tmp_path / "small.npz", 0.5, DATASET)
    raw = save(tmp_path / "whole.npz", **odd()).read_bytes()
    (tmp_path / "short.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"damaged or not an \.npz"):
        load_extra(tmp_path / "short.npz", 0.5, DATASET)
    # pickled data, as of Carmon et al., are never opened
    (tmp_path / "ti.pickle").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"ti\.pickle"):
        load_extra(tmp_path / "ti.pickle", 0.5, DATASET)


@pytest.mark.slow
def test_a_run_with_extra_images_resumes_and_knows_them_again(tmp_path: Path) -> None:
    split = random_split(60, 8, 8, 1)
    extra = save(tmp_path / "extra.npz", image=split.images, label=split.labels)
    arguments = [*SMALL, "--epochs", "2", "--extra", extra, "--extra-fraction", "0.5"]
    whole = run_tiny("train", *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert "images stream" in whole.stdout
    resident = run_tiny("train", *arguments, "--loader", "resident", "--out", tmp_path / "resident")
    assert resident.returncode == 0, resident.stderr
    assert_same_end(tmp_path / "whole", tmp_path / "resident")
    save(extra, image=split.images[:50], label=split.labels[:50])
    changed = run_tiny("resume", tmp_path / "whole")
    assert changed.returncode == 2
    assert "not those that the run began with" in changed.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--extra-fraction 1", "is 20 images, expected 1 to 19"),
        ("--extra-fraction 0", "is 0 images"),
        ("--extra-fraction nan", "is 0 images"),
    ],
)
def test_fractions_that_leave_no_images_of_one_kind_are_refused(
    flags: str, expected: str, tmp_path: Path
) -> None:
    split = random_split(60, 8, 8, 1)
    extra = save(tmp_path / "extra.npz", image=split.images, label=split.labels)
    refused = run_tiny("train", *SMALL, "--extra", extra, *shlex.split(flags))
    assert refused.returncode == 2
    assert expected in refused.stderr


@pytest.mark.slow
@pytest.mark.process
def test_a_large_generated_set_stays_on_the_disk(tmp_path: Path) -> None:
    """300 000 images, sparse, from the first to the last batch of an epoch, in 2 GB.

    What is counted is the whole process with torch and the pages of the file that it maps.
    """
    count, path = 300_000, tmp_path / "generated.npz"
    shape = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 32, 32, 3), }}"
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("image.npy", "w", force_zip64=True) as member:
            header = shape.ljust(117) + "\n"
            member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
            black = bytes(3072 * 1000)
            for _ in range(count // 1000):
                member.write(black)
        with archive.open("label.npy", "w") as member:
            np.save(member, np.zeros(count, dtype=np.int64))
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from fastcat.loaders.choose import *\n"
        "from fastcat.loaders.dataset import Dataset, Split\n"
        "from fastcat.loaders.extra_file import load_extra\n"
        "from fastcat.loaders.loader import Sampling\n"
        "from tests.harness.peak_memory import peak_mib\n"
        "own = Split(np.zeros((1000, 32, 32, 3), np.uint8), np.arange(1000) % 2)\n"
        "data = Dataset(name='own', classes=('a', 'b'), train=own, test=own, crop_pad=4, flip=True,"
        " digest='')\n"
        "extra = load_extra(Path(sys.argv[1]), 0.99, data)\n"
        "sampling = Sampling(index=torch.arange(300_000) % 1000, batch_size=1000, extra=extra,"
        " shuffle=True)\n"
        "name = choose_loader('auto', own, sampling, torch.device('cpu'))\n"
        "loader = make_loader(name, data, 'train', sampling, torch.device('cpu'), Path())\n"
        "seen = torch.cat([batch.indices for batch in loader])\n"
        "assert (seen >= 1000).sum() == 297_000 and len(seen.unique()) > 150_000\n"
        "print(name, peak_mib())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    name, peak_mib = done.stdout.split()
    assert name == "stream"
    assert int(peak_mib) < 2000
    assert os.path.getsize(path) > count * 3072
