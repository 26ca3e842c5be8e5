"""FFCV's files: the bytes that FFCV would write, and one sentence for what is wrong with them."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastcat.errors import InputError
from fastcat.loaders.backends.ffcv import FfcvReader
from fastcat.loaders.choose import make_loader
from fastcat.loaders.dataset import Split
from fastcat.loaders.formats.beton import read_beton, write_beton
from fastcat.loaders.formats.beton_folder import load_betons, write_betons
from fastcat.loaders.loader import Sampling
from fastcat.loaders.registry import load_dataset
from tests.harness.peak_memory import peak_mib
from tests.harness.random_images import CPU, random_dataset, random_split


def refusal_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_betons(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def betons(tmp_path: Path) -> Path:
    write_betons(random_dataset(n=40), tmp_path / "set.beton")
    return tmp_path / "set.beton"


@pytest.mark.parametrize(("channels", "count"), [(3, 40), (1, 17), (4, 3)])
def test_images_and_labels_come_back(channels: int, count: int, tmp_path: Path) -> None:
    split = random_split(count, channels=channels)
    write_beton(tmp_path / "a.beton", split)
    found = read_beton(tmp_path / "a.beton")
    assert found.images.shape == split.images.shape
    assert np.array_equal(found.images[:], split.images)
    assert np.array_equal(found.labels, split.labels)
    rows = np.array([2, 0, 2])
    assert np.array_equal(found.images[rows], split.images[rows])


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("channels", "side"), [(3, 7), (1, 8), (3, 2000)])
def test_the_bytes_are_those_that_ffcv_writes(channels: int, side: int, tmp_path: Path) -> None:
    """Also where pages are larger than usual, and where one holds a single image."""
    writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed")
    from ffcv.fields import IntField, NDArrayField, RGBImageField

    split = random_split(3, side, side, channels)
    write_beton(tmp_path / "ours.beton", split)
    shape = split.images.shape[1:]
    kind = RGBImageField() if channels == 3 else NDArrayField(np.dtype("u1"), shape)
    page = 1 << 23 if side < 2000 else 1 << 24
    theirs = writer.DatasetWriter(
        str(tmp_path / "theirs.beton"),
        {"image": kind, "label": IntField()},
        page_size=page,
        num_workers=1,
    )
    theirs.from_indexed_dataset(list(zip(split.images, split.labels.tolist(), strict=True)))
    ours = (tmp_path / "ours.beton").read_bytes()
    assert ours == (tmp_path / "theirs.beton").read_bytes()


def test_a_set_is_read_back_whole(betons: Path) -> None:
    dataset, expected = load_betons(betons), random_dataset(n=40)
    assert (dataset.classes, dataset.digest) == (expected.classes, expected.digest)
    assert (dataset.crop_pad, dataset.flip) == (2, True)
    assert np.array_equal(dataset.test.images[:], expected.test.images)
    assert load_dataset(str(betons), Path()).digest == expected.digest
    assert not [path.name for path in betons.parent.iterdir() if path != betons]


def test_files_from_elsewhere_need_no_manifest(betons: Path) -> None:
    (betons / "set.json").unlink()
    (betons / "test.beton").rename(betons / "val.beton")
    dataset = load_betons(betons)
    assert dataset.classes == tuple("01234")
    assert np.array_equal(dataset.train.labels, random_dataset(n=40).train.labels)


@pytest.mark.slow
def test_another_set_of_the_same_name_is_not_taken_for_it(tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    dataset, other = random_dataset(n=40), random_dataset(n=41)
    write_betons(other, tmp_path / f"random-{dataset.digest[:12]}.beton")
    sampling = Sampling(index=torch.arange(40), batch_size=4)
    with pytest.raises(InputError, match="holds other images than random: remove it"):
        make_loader("ffcv", dataset, "train", sampling, CPU, tmp_path)


def test_a_file_that_is_cut_short_is_refused(betons: Path) -> None:
    whole = (betons / "train.beton").read_bytes()
    (betons / "set.json").unlink()
    for length in (0, 10, 2000, 3000, len(whole) // 2, len(whole) - 1):
        (betons / "train.beton").write_bytes(whole[:length])
        assert "cannot be used" in refusal_of(betons)
    (betons / "train.beton").write_bytes(whole + b"\0" * 24)
    assert "damaged or cut short" in refusal_of(betons)


def test_a_flipped_bit_is_found_by_the_checksum(betons: Path) -> None:
    raw = bytearray((betons / "train.beton").read_bytes())
    raw[-3000] ^= 1
    (betons / "train.beton").write_bytes(raw)
    assert "train.beton is damaged (its checksum differs)" in refusal_of(betons)


def test_a_label_that_is_no_class_is_refused(betons: Path) -> None:
    dataset = random_dataset(n=40)
    labels = dataset.train.labels.copy()
    labels[3] = 7
    write_beton(betons / "train.beton", Split(dataset.train.images, labels))
    manifest = json.loads((betons / "set.json").read_text())
    del manifest["files"]["train"]
    (betons / "set.json").write_text(json.dumps(manifest))
    assert "checksum" in refusal_of(betons)
    (betons / "set.json").unlink()
    assert "never occur" in refusal_of(betons)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 9}', "format 9, expected 1"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(betons: Path, text: str, expected: str) -> None:
    (betons / "set.json").write_text(text)
    message = refusal_of(betons)
    assert expected in message
    assert "fastcat data convert" in message


@pytest.mark.slow
@pytest.mark.process
def test_jpegs_and_other_fields_are_refused_by_name(betons: Path, tmp_path: Path) -> None:
    writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed")
    from ffcv.fields import FloatField, IntField, RGBImageField

    images = random_split(4, 16, 16).images
    (betons / "set.json").unlink()
    for fields, expected in (
        ({"image": RGBImageField("jpg"), "label": IntField()}, "JPEGs"),
        ({"image": RGBImageField(), "target": IntField()}, "not an image and an integer"),
        ({"image": RGBImageField(), "label": FloatField()}, "not an image and an integer"),
    ):
        theirs = writer.DatasetWriter(str(betons / "train.beton"), fields, num_workers=1)
        theirs.from_indexed_dataset([(image, 1) for image in images])
        assert expected in refusal_of(betons)


@pytest.mark.process
@pytest.mark.parametrize(("channels", "height"), [(3, 9), (1, 9), (4, 16)])
def test_channels_that_come_first_are_refused(channels: int, height: int, betons: Path) -> None:
    """As FFCV's NDArrayField takes them, and as networks of torch see them."""
    writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed")
    from ffcv.fields import IntField, NDArrayField

    shape = (channels, height, 8)
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)
    (betons / "set.json").unlink()
    for part in ("train", "test"):
        fields = {"image": NDArrayField(np.dtype("u1"), shape), "label": IntField()}
        theirs = writer.DatasetWriter(str(betons / f"{part}.beton"), fields, num_workers=1)
        theirs.from_indexed_dataset([(image, k % 2) for k, image in enumerate(images)])
    expected = f"8 channels of {channels} x {height} pixels: give [height, width, channels], as by"
    assert expected in refusal_of(betons)


@pytest.mark.slow
@pytest.mark.process
def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from fastcat.errors import InputError\n"
        "from fastcat.loaders.formats.beton_folder import write_betons\n"
        "from tests.harness.random_images import random_dataset\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n    write_betons(random_dataset(), Path(sys.argv[1]))\n"
        "except InputError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "full.beton")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.process
def test_a_writer_that_is_killed_leaves_nothing_that_is_taken_for_a_set(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from fastcat.loaders.formats.beton_folder import write_betons\n"
        "from tests.harness.random_images import random_dataset\n"
        "def wait(done, total):\n    print(done, flush=True); time.sleep(60)\n"
        "write_betons(random_dataset(), Path(sys.argv[1]), wait)\n"
    )
    target = tmp_path / "killed.beton"
    writing = subprocess.Popen(
        [sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert writing.stdout is not None
    assert writing.stdout.readline().strip() == "23"
    writing.send_signal(signal.SIGKILL)
    writing.wait(timeout=60)
    writing.stdout.close()
    assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".killed.beton.part"]
    write_betons(random_dataset(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["killed.beton"]
    assert load_betons(target).digest == random_dataset().digest


class _Failing:
    """FFCV's decoding thread, dead before the first batch."""

    def __init__(self, *args: object) -> None:
        from queue import Queue

        self.output_queue: object = Queue()
        self.thread = threading.Thread()

    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_a_failure_inside_ffcv_is_no_endless_wait(
    betons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterators = pytest.importorskip("ffcv.loader.epoch_iterator", reason="FFCV is not installed")
    path = betons / "train.beton"
    reader = FfcvReader(path, read_beton(path), 4)
    monkeypatch.setattr(iterators, "EpochIterator", _Failing)
    with pytest.raises(InputError, match=r"FFCV failed to decode .*--loader stream"):
        next(reader([np.arange(4)], 0))


def test_without_ffcv_there_are_the_lines_that_install_it(
    betons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ffcv.loader", None)
    with pytest.raises(InputError) as caught:
        FfcvReader(betons / "train.beton", read_beton(betons / "train.beton"), 4)
    message = str(caught.value)
    assert "apt-get install libopencv-dev libturbojpeg0-dev pkg-config" in message
    assert "pip install ffcv" in message
    assert len(message.splitlines()) == 1


@pytest.mark.slow
@settings(
    max_examples=250,
    deadline=5000,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_mutated_files_are_read_or_refused(betons: Path, data: st.DataObject) -> None:
    """What is read back is within the file, so that FFCV cannot be led astray by it."""
    whole = (betons / "test.beton").read_bytes()
    head = 24 + 2 * 1041 + 7 * 24
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        area = data.draw(st.sampled_from([(0, 24), (24, head), (len(raw) - 200, len(raw))]))
        at = data.draw(st.integers(area[0], area[1] - 1))
        raw[at] = data.draw(st.one_of(st.sampled_from([0, 1, 255]), st.integers(0, 255)))
    if data.draw(st.integers(0, 4)) == 0:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    path = betons / "mutated.beton"
    path.write_bytes(raw)
    try:
        split = read_beton(path)
    except InputError:
        return
    size = int(np.prod(split.images.shape[1:]))
    assert split.images.places.max() + size <= len(raw)
    assert len(split.images[:]) == len(split)


def test_memory_does_not_grow_with_what_a_header_claims(betons: Path) -> None:
    raw = bytearray((betons / "test.beton").read_bytes())
    raw[8:16] = (1 << 40).to_bytes(8, "little")
    (betons / "huge.beton").write_bytes(raw)
    before = peak_mib()
    with pytest.raises(InputError, match="cut short"):
        read_beton(betons / "huge.beton")
    assert peak_mib() - before < 200
    assert os.path.getsize(betons / "huge.beton") < 20 << 20
