"""Packed folders: never decoded twice, checked to the last bit, whole or not there at all."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.loaders.formats import pack, staging
from fastcat.loaders.formats.digest import array_checksum, dataset_digest
from fastcat.loaders.formats.folder import load_folder
from tests.harness.image_folders import beside, make_folder, noise, refusal_of

CHECKOUT = Path(__file__).parents[3]
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
CHILD = """
import os, signal, sys
from pathlib import Path
from fastcat.errors import InputError
from fastcat.loaders.formats.folder import load_folder
folder = Path(sys.argv[1])
def kill(): os.kill(os.getpid(), signal.SIGKILL)
"""


def run_child(
    code: str, path: Path, before: Callable[[], object] | None = None
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(path)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def test_second_load_does_not_decode_and_is_equal(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_folder(images)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded again"))
    second = load_folder(images, lambda done, total: pytest.fail("packed again"))
    assert np.array_equal(first.train.images, second.train.images)
    assert np.array_equal(first.test.labels, second.test.labels)
    assert first.digest == second.digest


def test_pack_alone_is_enough_under_the_folder_s_path(images: Path) -> None:
    digest = load_folder(images).digest
    shutil.rmtree(images)
    assert load_folder(images).digest == digest


def test_a_link_is_packed_beside_the_link(images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere/link"
    link.symlink_to(images)
    load_folder(link)
    assert beside(link) == {"link.packed"}
    assert beside(images) == {"elsewhere"}


def edit_manifest(packed: Path, **changes: object) -> None:
    """Change entries of pack.json and seal it again, as somebody would who knows how."""
    manifest = {**json.loads((packed / "pack.json").read_text()), **changes}
    rest = {key: value for key, value in manifest.items() if key not in ("format", "seal")}
    (packed / "pack.json").write_text(json.dumps({**manifest, "seal": pack._seal(rest)}))


def unlink_all(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def relabel(packed: Path, label: int) -> None:
    """A pack that is whole in every checksum, but with a label that is no class."""
    labels = np.load(packed / "train-labels.npy")
    labels[3] = label
    np.save(packed / "train-labels.npy", labels)
    manifest = json.loads((packed / "pack.json").read_text())
    checksums = {**manifest["checksums"], "train-labels.npy": array_checksum(labels)}
    digest = dataset_digest(manifest["classes"], [checksums[name] for name in pack.ARRAYS])
    edit_manifest(packed, checksums=checksums, digest=digest)


def flip_bit(file: Path, place: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped image bit": (
        lambda p: flip_bit(p / "train-images.npy", -1),
        "train-images.npy is damaged",
    ),
    "flipped label bit": (
        lambda p: flip_bit(p / "test-labels.npy", -8),
        "test-labels.npy is damaged",
    ),
    "truncated array": (
        lambda p: os.truncate(p / "test-images.npy", 200),
        "test-images.npy is damaged (its checksum differs)",
    ),
    "missing array": (
        lambda p: (p / "train-labels.npy").unlink(),
        "train-labels.npy cannot be read",
    ),
    "missing manifest": (lambda p: (p / "pack.json").unlink(), "pack.json is missing or damaged"),
    "cut manifest": (lambda p: os.truncate(p / "pack.json", 50), "pack.json is missing or damaged"),
    "manifest without entries": (
        lambda p: (p / "pack.json").write_text('{"format": 2}'),
        "pack.json is damaged (its checksum",
    ),
    "manifest without arrays": (
        lambda p: edit_manifest(p, checksums={}),
        "pack.json is damaged (entries",
    ),
    "other format": (lambda p: edit_manifest(p, format=1), "format 1, expected 2"),
    "flipped augmentation": (
        lambda p: (p / "pack.json").write_text(
            (p / "pack.json").read_text().replace('"flip": true', '"flip": false')
        ),
        "pack.json is damaged (its checksum",
    ),
    "labels that are no classes": (
        lambda p: relabel(p, 7),
        "the train labels of",
    ),
    "other class names": (
        lambda p: edit_manifest(p, classes=["cat", "fox"]),
        "pack.json is damaged",
    ),
    "other counts": (
        lambda p: edit_manifest(p, counts={"train": 9, "test": 5}),
        "train has shape (10, 8, 8, 3), expected (9, 8, 8, 3)",
    ),
    "other shape": (
        lambda p: edit_manifest(p, shape=[8, 8, 1]),
        "train has shape (10, 8, 8, 3), expected (10, 8, 8, 1)",
    ),
    "empty directory": (
        unlink_all,
        "pack.json is missing or damaged",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_pack_is_refused_with_the_line_that_removes_it(
    images: Path, damage: Callable[[Path], object], words: str
) -> None:
    load_folder(images)
    packed = images.with_name("pets.packed")
    damage(packed)
    message = refusal_of(images)
    assert words in message
    assert f"rm -r {packed}" in message or "write the labels anew" in message
    assert len(message.splitlines()) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda p: Image.fromarray(noise(1)).save(p / "train/cat/9.png"),
    "removed": lambda p: (p / "train/cat/0.png").unlink(),
    "renamed": lambda p: (p / "train/cat/0.png").rename(p / "train/cat/00.png"),
    "moved to another class": lambda p: (p / "train/cat/4.png").rename(p / "train/dog/9.png"),
    "other size in bytes": lambda p: (p / "test/dog/0.png").write_bytes(b"x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_folder_is_refused_until_it_is_packed_again(
    images: Path, change: Callable[[Path], object]
) -> None:
    load_folder(images)
    change(images)
    message = refusal_of(images)
    assert "changed after packing" in message
    assert f"rm -r {images}.packed" in message


def test_packs_have_no_other_files_than_the_manifest_names(images: Path) -> None:
    load_folder(images)
    packed = images.with_name("pets.packed")
    assert {path.name for path in packed.iterdir()} == {*pack.ARRAYS, pack.MANIFEST}


@contextmanager
def no_lock(_: Path) -> Iterator[bool]:
    yield False


def test_leftover_of_a_killed_packer_is_removed_and_nothing_else(images: Path) -> None:
    leftover = images.with_name(f".pets.packed.{'0a' * 16}")
    similar = images.with_name(".pets.packed.notes")
    for path in (leftover, similar):
        path.mkdir()
        (path / "train-images.npy").write_bytes(b"half")
    load_folder(images)
    assert beside(images) == {"pets.packed", similar.name}


def test_leftover_stays_where_its_packer_may_be_alive(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "locked", no_lock)
    leftover = images.with_name(f".pets.packed.{'0a' * 16}")
    leftover.mkdir()
    load_folder(images)
    assert beside(images) == {"pets.packed", leftover.name}


@pytest.mark.slow
@pytest.mark.process
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "large", train=2, test=1, height=64, width=64)
    code = "try: load_folder(folder)\nexcept InputError as error: print(error)"
    limit = 10_000  # bytes a file; the train split needs 49 kB
    child = run_child(
        code, path, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    out, err = child.communicate(timeout=60)
    assert err == ""
    assert f"no room to pack {path} into {tmp_path}" in out
    assert len(out.splitlines()) == 1
    assert beside(path) == set()


def obey_permissions() -> None:
    """Take from a child that runs as root the right to write where the mode forbids it."""
    if sys.platform == "linux" and os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(
    sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere"
)
def test_read_only_parent_is_one_sentence_that_names_it(images: Path) -> None:
    code = "try: load_folder(folder)\nexcept InputError as error: print(error)"
    images.parent.chmod(0o555)
    try:
        child = run_child(code, images, before=obey_permissions)
        out, err = child.communicate(timeout=60)
    finally:
        images.parent.chmod(0o755)
    assert err == ""
    assert f"no permission to write pets.packed into {images.parent}" in out
    assert f"fastcat data convert {images} OUT.packed" in out
    assert len(out.splitlines()) == 1
    assert beside(images) == set()


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_pack_once_between_them(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "pets", train=30)
    code = (
        "calls = []; data = load_folder(folder, lambda done, total: calls.append(done))\n"
        "print(data.digest, bool(calls))"
    )
    children = [run_child(code, path) for _ in range(2)]
    answers = [child.communicate(timeout=60) for child in children]
    assert [err for _, err in answers] == ["", ""]
    digests, packed = zip(*(out.split() for out, _ in answers), strict=True)
    assert digests[0] == digests[1]
    assert sorted(packed) == ["False", "True"]
    assert beside(path) == {"pets.packed"}


def test_without_a_lock_the_slower_of_two_packers_takes_the_winner_s_pack(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "locked", no_lock)
    both_decode = threading.Barrier(2, timeout=30)
    digests: list[str] = []

    def meet(done: int, total: int) -> None:
        both_decode.wait()

    def load() -> None:
        digests.append(load_folder(images, meet).digest)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert beside(images) == {"pets.packed"}


def test_new_pack_is_readable_by_others_as_the_umask_says(images: Path) -> None:
    load_folder(images)
    umask = os.umask(0)
    os.umask(umask)
    assert images.with_name("pets.packed").stat().st_mode & 0o777 == 0o777 & ~umask
