"""A packer that is killed is continued to the same bytes; one that is refused leaves nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.errors import InputError
from fastcat.loaders.formats import image_source, pack_writer, staging
from fastcat.loaders.formats.folder import folder_source, load_folder
from fastcat.loaders.formats.pack import load_pack
from fastcat.loaders.formats.pack_writer import write_pack
from tests.harness.image_folders import beside, make_folder, noise, refusal_of

CHECKOUT = Path(__file__).parents[3]

# packs once for each thing that it does on the disk, killed just before it, then once more
KILLED_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
from fastcat.loaders.formats import image_source, pack_writer, staging
from fastcat.loaders.formats.folder import folder_source
from fastcat.loaders.formats.pack_writer import write_pack

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
image_source._BLOCK_IMAGES = 3
pack_writer._JOURNAL_SECONDS = 0

def pack(name, kill_before=None):
    done = 0
    def event():
        nonlocal done
        done += 1
        if done == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
    def before(function):
        def hooked(*arguments, **settings):
            event()
            return function(*arguments, **settings)
        return hooked
    pid = os.fork()
    if pid == 0:
        try:
            os.fsync = before(os.fsync)
            for action in ("replace", "rename", "unlink", "mkdir"):
                setattr(Path, action, before(getattr(Path, action)))
            write_pack(folder_source(folder), out / f"{name}.packed", lambda *_: event())
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return os.waitpid(pid, 0)[1]

def content(name):
    return {f.name: f.read_bytes() for f in (out / f"{name}.packed").iterdir()}

assert pack("whole") == 0
moment = 1
while True:
    name = f"killed-{moment}"
    if pack(name, moment) == 0:
        break
    packed = out / f"{name}.packed"
    if packed.exists():
        assert content(name) == content("whole"), f"{moment}: not whole but there"
    assert pack(name) == 0, moment
    assert content(name) == content("whole"), moment
    moment += 1
print(moment, sorted(f.name for f in out.iterdir() if f.name.startswith(".")))
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    "channels",
    [
        pytest.param(3, id="colour"),
        pytest.param(1, id="grey", marks=pytest.mark.represented),
    ],
)
def test_killed_at_any_moment_it_is_continued_to_the_same_bytes(
    tmp_path: Path, channels: int
) -> None:
    path = make_folder(tmp_path / "pets", channels=channels)
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EVERYWHERE, str(path), str(tmp_path / "out")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    moments, _, left = done.stdout.partition(" ")
    assert int(moments) > 30
    assert left.strip() == "[]"


class Stop(BaseException):
    """What ends a packer at once, as Ctrl-C does."""


def pack_until(path: Path, images: int) -> None:
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise Stop

    with pytest.raises(Stop):
        load_folder(path, progress)


@pytest.fixture
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "_BLOCK_IMAGES", 2)
    monkeypatch.setattr(pack_writer, "_JOURNAL_SECONDS", 0)


@pytest.mark.usefixtures("_small_steps")
def test_interrupted_packer_is_continued_where_it_stopped(images: Path) -> None:
    pack_until(images, 8)
    assert beside(images) == {".pets.packed.part"}
    calls: list[int] = []
    data = load_folder(images, lambda done, total: calls.append(done))
    # the block that was under way is read again
    assert calls == [8, 10, 12, 14]
    expected = [np.asarray(Image.open(p)) for p in sorted((images / "train").glob("*/*.png"))]
    assert np.array_equal(data.train.images, np.stack(expected))
    assert beside(images) == {"pets.packed"}


@pytest.mark.usefixtures("_small_steps")
@pytest.mark.parametrize("change", ["image", "journal", "array", "resize"])
def test_what_was_packed_of_another_source_is_begun_anew(images: Path, change: str) -> None:
    pack_until(images, 8)
    part = images.with_name(".pets.packed.part")
    resize = 4 if change == "resize" else None
    if change == "image":
        Image.fromarray(noise(77)).resize((8, 8)).save(images / "train/cat/00.png")
    if change == "journal":
        journal = json.loads((part / "journal.json").read_text())
        (part / "journal.json").write_text(json.dumps({**journal, "done": {"train": "many"}}))
    if change == "array":
        os.truncate(part / "train-images.npy", 300)
    calls: list[int] = []
    source = folder_source(images, resize)
    write_pack(source, images.with_name("pets.packed"), lambda done, total: calls.append(done))
    assert calls[0] == 2
    data = load_pack(images.with_name("pets.packed"))
    assert len(data.train) == (11 if change == "image" else 10)
    assert data.image_shape == ((4, 4, 3) if resize else (8, 8, 3))


@pytest.mark.usefixtures("_small_steps")
def test_faults_found_before_a_kill_are_not_forgotten(images: Path) -> None:
    (images / "train/cat/0.png").write_bytes(b"no image")
    pack_until(images, 8)
    message = refusal_of(images)
    assert "1 of 14 images" in message
    assert "'train/cat/0.png'" in message
    assert beside(images) == set()


@pytest.mark.usefixtures("_small_steps")
def test_sizes_that_differed_do_so_no_more_once_they_are_resized(images: Path) -> None:
    Image.fromarray(noise(5, 9, 9)).save(images / "train/cat/1.png")
    pack_until(images, 8)
    write_pack(folder_source(images, 8), images.with_name("pets.packed"), None)
    assert len(load_pack(images.with_name("pets.packed")).train) == 10


def test_an_image_deleted_while_packing_is_named(images: Path) -> None:
    listed = folder_source(images)
    (images / "test/dog/1.png").unlink()
    with pytest.raises(InputError, match=r"'test/dog/1.png' cannot be read"):
        write_pack(listed, images.with_name("pets.packed"), None)
    assert beside(images) == set()


@pytest.mark.parametrize("journal_seconds", [0.0, 100.0])
def test_unreadable_images_are_left_out_when_asked(
    images: Path, monkeypatch: pytest.MonkeyPatch, journal_seconds: float
) -> None:
    monkeypatch.setattr(pack_writer, "_JOURNAL_SECONDS", journal_seconds)
    monkeypatch.setattr(image_source, "_BLOCK_IMAGES", 2)
    whole = load_folder(images)
    shutil.copytree(images, images.with_name("bad"))
    for name in ("train/cat/0.png", "train/dog/2.png", "test/cat/1.png"):
        (images.with_name("bad") / name).write_bytes(b"no image")
    packed = images.with_name("some.packed")
    write_pack(folder_source(images.with_name("bad")), packed, None, skip_unreadable=True)
    data = load_pack(packed)
    kept = [1, 2, 3, 4, 5, 6, 8, 9]
    assert np.array_equal(data.train.images, whole.train.images[kept])
    assert np.array_equal(data.train.labels, whole.train.labels[kept])
    assert np.array_equal(data.test.images, whole.test.images[[0, 2, 3]])
    manifest = json.loads((packed / "pack.json").read_text())
    assert manifest["skipped"] == 3
    assert manifest["counts"] == {"train": 8, "test": 3}


def test_a_class_without_readable_images_is_refused_also_then(images: Path) -> None:
    for path in (images / "test/dog").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="no image of class 'dog' in the test split"):
        write_pack(folder_source(images), images.with_name("x.packed"), None, skip_unreadable=True)
    assert beside(images) == set()


def test_images_of_another_size_are_no_unreadable_ones(images: Path) -> None:
    Image.fromarray(noise(5, 9, 9)).save(images / "train/cat/0.png")
    with pytest.raises(InputError, match="--resize 64"):
        write_pack(folder_source(images), images.with_name("x.packed"), None, skip_unreadable=True)


def test_differing_sizes_are_told_before_all_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(tmp_path / "pets", train=10)
    for number in range(1, 10):
        Image.fromarray(noise(number, 9, 9)).save(path / f"train/cat/{number}.png")
    monkeypatch.setattr(image_source, "_BLOCK_IMAGES", 2)
    monkeypatch.setattr(pack_writer, "_ENOUGH_FAULTS", 3)
    assert "3 of 4 images" in refusal_of(path)
    assert beside(path) == set()


def test_a_waiting_packer_whose_place_was_removed_begins_anew(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to hold the lock was refused and has removed the directory that this one locked."""
    packed = images.with_name("pets.packed")
    part = images.with_name(".pets.packed.part")
    real, times = staging.locked, []

    def removed_meanwhile(directory: Path):  # type: ignore[no-untyped-def]
        if not times:
            part.rmdir()
        times.append(directory)
        return real(directory)

    monkeypatch.setattr(staging, "locked", removed_meanwhile)
    write_pack(folder_source(images), packed, None)
    assert len(times) == 2
    assert beside(images) == {"pets.packed"}


def test_a_waiting_packer_takes_the_pack_that_was_written_meanwhile(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = images.with_name("pets.packed")
    real = staging.locked

    def written_meanwhile(directory: Path):  # type: ignore[no-untyped-def]
        packed.mkdir()
        return real(directory)

    monkeypatch.setattr(staging, "locked", written_meanwhile)
    assert write_pack(folder_source(images), packed, None) == 0
    assert beside(images) == {"pets.packed"}


def test_resizing_crops_the_middle_and_is_antialiased(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "pets", height=16, width=16)
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(path / "train/cat/0.png")
    stripes = np.zeros((16, 16, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(path / "train/cat/1.png")
    write_pack(folder_source(path, 8), tmp_path / "small.packed", None)
    images = load_pack(tmp_path / "small.packed").train.images
    assert (images[0][:, 1:-1] == 255).all()
    assert images[0].min() > 200  # the filter reaches beyond the middle a little
    assert np.ptp(images[1]) < 40, "each second pixel was taken"
    assert abs(float(images[1].mean()) - 127.5) < 4
