"""Named data sets: the digits, CIFAR from archives made here, and what is said of missing ones."""

import hashlib
import pickle
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from torchvision import datasets

from fastcat.errors import InputError
from fastcat.loaders.registry import dataset_names, is_folder, load_dataset

# Of all 1797 images and labels and their split: a change of it changes every published number.
DIGITS_DIGEST = "90dc34be2e128b017b293a6aa4d5b233e5bf0ce1c6041d238457b92da0312164"


def one_line(caught: "pytest.ExceptionInfo[InputError]") -> str:
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_digits_are_the_bundled_images_scaled_to_bytes(tmp_path: Path) -> None:
    bunch = sklearn.datasets.load_digits()
    data = load_dataset("digits", tmp_path)
    ours = np.concatenate([data.train.images, data.test.images])[..., 0]
    labels = np.concatenate([data.train.labels, data.test.labels])
    scaled = [[round(value * 255 / 16) for value in row] for row in bunch.data.tolist()]
    expected = {
        (tuple(row), label) for row, label in zip(scaled, bunch.target.tolist(), strict=True)
    }
    assert {(tuple(i.ravel().tolist()), k) for i, k in zip(ours, labels.tolist(), strict=True)} == (
        expected
    )
    assert len(ours) == 1797
    assert ours.dtype == np.uint8
    assert ours.max() == 255


def test_digits_split_is_a_fifth_of_each_class_and_never_changes(tmp_path: Path) -> None:
    data = load_dataset("digits", tmp_path)
    total = np.bincount(data.train.labels) + np.bincount(data.test.labels)
    assert np.array_equal(np.bincount(data.test.labels), np.round(total / 5))
    assert data.digest == DIGITS_DIGEST


def test_digits_are_neither_shifted_nor_mirrored(tmp_path: Path) -> None:
    data = load_dataset("digits", tmp_path)
    assert (data.image_shape, data.crop_pad, data.flip) == ((8, 8, 1), 0, False)
    assert data.classes == tuple("0123456789")
    assert data.train.images.flags.c_contiguous


def test_digits_without_scikit_learn_name_the_line_that_installs_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError) as caught:
        load_dataset("digits", tmp_path)
    assert "pip install scikit-learn" in one_line(caught)


def cifar_bytes(seed: int, count: int, label_key: str) -> bytes:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
    labels = [number % 3 for number in range(count)]
    return pickle.dumps({"data": images, label_key: labels})


@pytest.fixture(params=["cifar10", "cifar100"])
def published(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A small archive of the published form under a file:// address; (name, archive)."""
    name: str = request.param
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    label_key = "labels" if name == "cifar10" else "fine_labels"
    batches = tmp_path / "made" / source.base_folder
    batches.mkdir(parents=True)
    contents = {}
    for seed, (file, _) in enumerate(source.train_list + source.test_list):
        contents[file] = cifar_bytes(seed, 6, label_key)
    contents[source.meta["filename"]] = pickle.dumps({source.meta["key"]: ["ant", "bee", "cow"]})
    for file, raw in contents.items():
        (batches / file).write_bytes(raw)
    archive = tmp_path / "published" / source.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, arcname=source.base_folder)

    def checked(files: list[list[str]]) -> list[list[str]]:
        return [[file, hashlib.md5(contents[file]).hexdigest()] for file, _ in files]

    meta = source.meta["filename"]
    monkeypatch.setattr(source, "train_list", checked(source.train_list))
    monkeypatch.setattr(source, "test_list", checked(source.test_list))
    monkeypatch.setattr(
        source, "meta", {**source.meta, "md5": hashlib.md5(contents[meta]).hexdigest()}
    )
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(source, "url", archive.as_uri())
    return name, archive


def test_cifar_is_downloaded_unpacked_and_read_without_a_word(
    published: tuple[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, archive = published
    calls: list[tuple[int, int]] = []
    data = load_dataset(
        name, tmp_path / "new/data", lambda done, total: calls.append((done, total))
    )
    label_key = "labels" if name == "cifar10" else "fine_labels"
    first = pickle.loads(cifar_bytes(0, 6, label_key))["data"][1].reshape(3, 32, 32)
    assert np.array_equal(data.train.images[1], first.transpose(1, 2, 0))
    assert data.train.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.labels.dtype == np.int64
    assert len(data.train) == (30 if name == "cifar10" else 6)
    assert len(data.test) == 6
    assert data.classes == ("ant", "bee", "cow")
    assert (data.crop_pad, data.flip, data.image_shape) == (4, True, (32, 32, 3))
    assert data.train.images.flags.c_contiguous
    assert calls[-1] == (archive.stat().st_size, archive.stat().st_size)
    assert capfd.readouterr() == ("", "")


def test_cifar_already_unpacked_needs_neither_archive_nor_network(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, archive = published
    digest = load_dataset(name, tmp_path).digest
    archive.unlink()
    (tmp_path / archive.name).unlink()
    assert load_dataset(name, tmp_path).digest == digest


def test_cifar_archive_put_into_the_data_folder_needs_no_network(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, archive = published
    archive.rename(tmp_path / archive.name)
    assert len(load_dataset(name, tmp_path).test) == 6


def test_cifar_damaged_after_unpacking_is_unpacked_again(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = published
    digest = load_dataset(name, tmp_path).digest
    batch = next(tmp_path.glob("cifar-*/test*"))
    batch.write_bytes(b"damaged")
    assert load_dataset(name, tmp_path).digest == digest


def test_cifar_without_network_names_the_archive_and_its_place(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, archive = published
    archive.unlink()
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path / "data")
    message = one_line(caught)
    assert f"{archive.name} could not be downloaded" in message
    assert f"put it into {tmp_path / 'data'}" in message
    assert list((tmp_path / "data").iterdir()) == []


class CutShort(BaseHTTPRequestHandler):
    """Promises 1000 bytes, sends 10 and hangs up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(10))

    def log_message(self, *_: object) -> None: ...


def test_cifar_download_that_breaks_off_leaves_no_archive(
    published: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, archive = published
    monkeypatch.setenv("no_proxy", "*")
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    with HTTPServer(("127.0.0.1", 0), CutShort) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setattr(source, "url", url)
        with pytest.raises(InputError) as caught:
            load_dataset(name, tmp_path / "data")
    assert f"{archive.name} could not be downloaded from {url}" in one_line(caught)
    assert "10 of 1000 bytes" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_cifar_damaged_archive_is_refused_and_kept(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    name, archive = published
    (tmp_path / archive.name).write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    assert f"{tmp_path / archive.name} is damaged" in one_line(caught)
    assert (tmp_path / archive.name).exists()


def test_cifar_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(InputError) as caught:
        load_dataset("cifar10", tmp_path / "data")
    assert str(tmp_path / "data") in one_line(caught)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar-10", "did you mean 'cifar10'?"),
        ("CIFAR100", "did you mean 'cifar100'?"),
        ("imagenet", "did you mean 'tiny-imagenet-200'?"),
        ("mnist", "known are cifar10, cifar100, digits, svhn, tiny-imagenet-200"),
        ("", "known are cifar10, cifar100, digits"),
    ],
)
def test_unknown_name_is_refused_with_known_ones_and_the_form_of_a_path(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_dataset(name, tmp_path)
    message = one_line(caught)
    assert words in message
    assert "./my-images" in message


@pytest.mark.parametrize("name", ["./pets", "pets"])
def test_folder_is_found_by_path_and_by_bare_name_also_when_only_its_pack_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "pets" / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pets" / place / "0.png")
    monkeypatch.chdir(tmp_path)
    first = load_dataset(name, tmp_path)
    assert (first.name, first.classes) == ("pets", ("cat", "dog"))
    (tmp_path / "pets").rename(tmp_path / "gone")
    assert load_dataset(name, tmp_path).digest == first.digest


def test_folder_named_like_a_data_set_is_meant_only_when_given_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [is_folder(name) for name in ("digits", "./digits", "", "pets")] == [
        False,
        True,
        False,
        False,
    ]


def test_path_that_does_not_exist_is_refused_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_dataset(str(tmp_path / "cifar10"), tmp_path)
    assert "does not exist" in one_line(caught)


def test_registered_names_load_what_they_say(published: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = published
    assert load_dataset(name, tmp_path).name == name
    assert load_dataset("digits", tmp_path).name == "digits"
    assert set(dataset_names()) == {"cifar10", "cifar100", "digits", "svhn", "tiny-imagenet-200"}
