"""Files with changed bytes, from anywhere: each is used or refused in one sentence, and in time."""

import io
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.errors import InputError
from fastcat.loaders.convert import convert
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import make_folder, make_tiny_imagenet, noise
from tests.harness.parquet import write_parquet
from tests.harness.random_images import ARRAYS

SECONDS = 10  # generous: what is caught is a loop or an allocation without end
PARTS = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"[" * 2000,
    b"null",
    b'"',
    b"\n",
    b"../",
    b"9" * 30,
)


def mutate(raw: bytes, random: np.random.Generator) -> bytes:
    """One to three changes: bits flipped, bytes cut out, doubled, moved, or put in."""
    changed = bytearray(raw)
    for _ in range(random.integers(1, 4)):
        if not changed:
            break
        begin = int(random.integers(len(changed)))
        if random.random() < 0.4:
            # headers stand at the beginning, and those of archives at the end
            begin = min(begin, int(random.integers(1, 200)))
            begin = begin if random.random() < 0.5 else len(changed) - 1 - begin
        end = begin + int(random.integers(1, 40))
        kind = random.integers(6)
        if kind == 0:
            changed[begin] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del changed[begin:end]
        elif kind == 2:
            changed[begin:begin] = changed[begin:end]
        elif kind == 3:
            changed[begin:end] = random.bytes(max(0, min(end, len(changed)) - begin))
        elif kind == 4:
            changed[begin:begin] = PARTS[int(random.integers(len(PARTS)))]
        else:
            del changed[begin:]
    return bytes(changed)


def is_used_or_refused(attempt: Callable[[], object], what: str) -> bool:
    """Whether it was used. Anything but success or one sentence fails the test."""
    begin, refusal = time.monotonic(), ""
    try:
        attempt()
    except InputError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) < 2, what
    assert time.monotonic() - begin < SECONDS, what
    return not refusal


def picture(kind: str, seed: int) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(noise(seed))
    if kind == "PNG of a palette":
        image = image.quantize(16)
    image.save(out, kind.split()[0])
    return out.getvalue()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it then reads
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PNG of a palette", "GIF", "TIFF", "WEBP", "BMP"])
def test_images(tmp_path: Path, kind: str) -> None:
    path = make_folder(tmp_path / "pets", train=1, test=1)
    random = np.random.default_rng(len(kind))
    used = []
    for number in range(12):
        raw = mutate(picture(kind, number), random)
        (path / "train/cat/1.img").write_bytes(raw)
        shutil.rmtree(path.with_name("pets.packed"), ignore_errors=True)
        used.append(is_used_or_refused(lambda: load_folder(path), f"{kind} {number}"))
        assert not path.with_name(".pets.packed.part").exists()
    assert not all(used), "the changes are too small to show anything"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "whole.npz", **ARRAYS)
    whole = (tmp_path / "whole.npz").read_bytes()
    random = np.random.default_rng(1)
    path = tmp_path / "x.npz"
    for number in range(30):
        path.write_bytes(mutate(whole, random))
        is_used_or_refused(lambda: load_dataset(str(path), tmp_path), f"load {number}")
        out = tmp_path / f"{number}.packed"
        attempt = partial(convert, str(path), out, data_dir=tmp_path)
        is_used_or_refused(attempt, f"convert {number}")


def test_parquet(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    for split, seeds in (("train", range(6)), ("test", range(6, 9))):
        write_parquet(hub / f"{split}-00000-of-00001.parquet", seeds)
    path = hub / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    random = np.random.default_rng(2)
    for number in range(30):
        path.write_bytes(mutate(whole, random))
        out = tmp_path / f"{number}.packed"
        is_used_or_refused(partial(convert, str(hub), out, data_dir=tmp_path), f"{number}")


@pytest.mark.parametrize(
    ("name", "count"), [("pack.json", 40), ("train-images.npy", 15), ("test-labels.npy", 15)]
)
def test_packs(images: Path, name: str, count: int) -> None:
    load_folder(images)
    file = images.with_name("pets.packed") / name
    whole = file.read_bytes()
    random = np.random.default_rng(3)
    for number in range(count):
        file.write_bytes(mutate(whole, random))
        changed = file.read_bytes() != whole
        used = is_used_or_refused(lambda: load_folder(images), f"{name} {number}")
        assert not (used and changed and name.endswith("npy")), "damage was not seen"


@pytest.mark.parametrize("name", ["val/val_annotations.txt", "words.txt"])
def test_tables_of_tiny_imagenet(tmp_path: Path, name: str) -> None:
    root = make_tiny_imagenet(tmp_path / "tiny")
    whole = (root / name).read_bytes()
    random = np.random.default_rng(4)
    for number in range(15):
        (root / name).write_bytes(mutate(whole, random))
        shutil.rmtree(tmp_path / "tiny.packed", ignore_errors=True)
        is_used_or_refused(lambda: load_folder(root), f"{name} {number}")


def test_journals(images: Path, tmp_path: Path) -> None:
    """Whatever an interrupted packer has left, the pack is whole in the end."""
    digest = load_folder(images).digest
    random = np.random.default_rng(5)
    journal = (
        b'{"identity": {}, "done": {"train": 4, "test": 0}, "kept": {"train": 4, "test": 0}, '
        b'"grey": true, "faults": 0, "listed": [], "remedies": [], "fatal": false}'
    )
    for number in range(10):
        shutil.rmtree(images.with_name("pets.packed"))
        part = images.with_name(".pets.packed.part")
        part.mkdir()
        (part / "journal.json").write_bytes(mutate(journal, random))
        (part / "train-images.npy").write_bytes(random.bytes(2000))
        assert load_folder(images).digest == digest, number


NAMES = [
    "", ".", "..", "/", "//", "~", "~nobody-of-this-name/x", "\0", "a\0b", "\n", " ", "x" * 300,
    "/" + "x" * 5000, "\udcff", "/dev/null", "/dev/zero", "/proc/self/mem", "/etc/passwd", "x.npz",
    "./x.npz", "/dev/null/x.npz", "./x.packed", "./x.beton", "torchvision:", "torchvision:../x",
    "torchvision:os.path", "cifar10/", "digits.packed", "http://example.org/x", "*", "-", "{}",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.packed"
    assert not is_used_or_refused(lambda: load_dataset(name, tmp_path), name)
    assert not is_used_or_refused(lambda: convert(name, out, data_dir=tmp_path), name)
    assert list(tmp_path.iterdir()) == []
