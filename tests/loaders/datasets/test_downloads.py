"""Data sets from the network, made small here: SVHN, Tiny ImageNet and others of torchvision."""

import gzip
import hashlib
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from fastcat.errors import InputError
from fastcat.loaders.convert import convert
from fastcat.loaders.datasets import tiny_imagenet_200
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import make_tiny_imagenet, noise


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Two small .mat files at file:// addresses; their images, [H, W, C, N], by split."""
    images = {}
    listed = {}
    (tmp_path / "net").mkdir()
    for seed, split in enumerate(("train", "test")):
        images[split] = np.stack([noise(10 * seed + k, 32, 32) for k in range(5)], axis=-1)
        # the digit 0 has the label 10
        labels = np.array([[1], [10], [3], [10], [9]], dtype=np.uint8)
        path = tmp_path / "net" / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images[split], "y": labels}, do_compression=True)
        listed[split] = [path.as_uri(), path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return images


def test_svhn_is_downloaded_and_read(svhn: dict[str, np.ndarray], tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = load_dataset("svhn", tmp_path / "data", lambda *place: calls.append(place))
    assert np.array_equal(data.train.images, svhn["train"].transpose(3, 0, 1, 2))
    assert np.array_equal(data.test.images, svhn["test"].transpose(3, 0, 1, 2))
    assert data.train.labels.tolist() == [1, 0, 3, 0, 9]
    assert (data.crop_pad, data.flip, len(data.classes)) == (0, False, 10)
    assert data.train.images.flags.c_contiguous
    assert calls
    # now from the files that are there
    again = load_dataset("svhn", tmp_path / "data", lambda *_: pytest.fail("downloaded again"))
    assert again.digest == data.digest


@pytest.mark.usefixtures("svhn")
def test_svhn_damaged_is_refused_before_it_is_read(tmp_path: Path) -> None:
    load_dataset("svhn", tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match=r"test_32x32\.mat is damaged"):
        load_dataset("svhn", tmp_path)


def test_svhn_without_scipy_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match="pip install scipy"):
        load_dataset("svhn", tmp_path)


def zip_tree(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The archive at its file:// address."""
    root = make_tiny_imagenet(tmp_path / "net" / tiny_imagenet_200.NAME)
    archive = root.with_name(f"{tiny_imagenet_200.NAME}.zip")
    zip_tree(root, archive)
    monkeypatch.setattr(tiny_imagenet_200, "URL", archive.as_uri())
    monkeypatch.setattr(tiny_imagenet_200, "MD5", md5(archive))
    return archive


def test_tiny_imagenet_is_downloaded_unpacked_and_packed(tiny: Path, tmp_path: Path) -> None:
    data = load_dataset(tiny_imagenet_200.NAME, tmp_path / "data")
    assert (len(data.train), len(data.test), data.crop_pad) == (9, 3, 8)
    names = {path.name for path in (tmp_path / "data").iterdir()}
    name = tiny_imagenet_200.NAME
    assert names == {name, f"{name}.zip", f"{name}.packed"}


ZIPS: dict[str, Callable[[zipfile.ZipFile], object]] = {
    "out of the folder": lambda file: file.writestr(f"{tiny_imagenet_200.NAME}/../../proof", "x"),
    "absolute": lambda file: file.writestr("/tmp/proof", "x"),
    "beside the folder": lambda file: file.writestr("proof", "x"),
    "backslashes": lambda file: file.writestr(f"{tiny_imagenet_200.NAME}\\..\\proof", "x"),
    "a link": lambda file: file.writestr(link(f"{tiny_imagenet_200.NAME}/proof"), "/etc/passwd"),
}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("add", ZIPS.values(), ids=ZIPS.keys())
def test_an_archive_that_reaches_outside_is_refused_and_nothing_is_unpacked(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    add: Callable[[zipfile.ZipFile], object],
) -> None:
    with zipfile.ZipFile(tiny, "a") as file:
        add(file)
    monkeypatch.setattr(tiny_imagenet_200, "MD5", md5(tiny))
    with pytest.raises(InputError, match="expected files in tiny-imagenet-200/ only"):
        load_dataset(tiny_imagenet_200.NAME, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [tiny.name]
    assert not list(tmp_path.rglob("proof"))


def test_a_damaged_archive_leaves_no_half_unpacked_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = bytearray(tiny.read_bytes())
    raw[raw.index(b"JFIF") + 700] ^= 1
    tiny.write_bytes(raw)
    monkeypatch.setattr(tiny_imagenet_200, "MD5", md5(tiny))
    with pytest.raises(InputError, match="cannot be unpacked"):
        load_dataset(tiny_imagenet_200.NAME, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [tiny.name]


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """FashionMNIST's files, small, as downloaded into data/; the images [N, 28, 28] by split."""
    images, resources = {}, []
    raw = tmp_path / "data/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for seed, (split, stem) in enumerate((("train", "train"), ("test", "t10k"))):
        images[split] = np.stack([noise(9 * seed + k, 28, 28, 1) for k in range(6)])
        labels = np.arange(6, dtype=np.uint8) % 10
        for kind, array, head in (
            ("images-idx3", images[split], (2051, 6, 28, 28)),
            ("labels-idx1", labels, (2049, 6)),
        ):
            path = raw / f"{stem}-{kind}-ubyte.gz"
            start = b"".join(number.to_bytes(4, "big") for number in head)
            path.write_bytes(gzip.compress(start + array.tobytes(), mtime=0))
            assert check_integrity(path, md5(path))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(datasets.FashionMNIST, "classes", [str(k) for k in range(6)])
    return images


def test_a_data_set_of_torchvision_is_converted(
    mnist: dict[str, np.ndarray], tmp_path: Path
) -> None:
    done = convert("torchvision:FashionMNIST", tmp_path / "f.packed", data_dir=tmp_path / "data")
    data = done.dataset
    assert data.image_shape == (28, 28, 1)
    assert np.array_equal(data.train.images[..., 0], mnist["train"])
    assert np.array_equal(data.test.images[..., 0], mnist["test"])
    assert data.test.labels.tolist() == list(range(6))
    assert (data.classes, data.crop_pad, data.flip) == (tuple("012345"), 3, True)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FashonMNIST", "type torchvision:FashionMNIST"),
        ("fashionmnist", "type torchvision:FashionMNIST"),
        ("CocoCaptions", "no data set 'CocoCaptions'"),
        ("", "torchvision:CIFAR10 or"),
        ("__path__", "no data set"),
        ("FakeData", "no data set"),
    ],
)
def test_names_that_torchvision_does_not_know(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        convert(f"torchvision:{name}", tmp_path / "x.packed", data_dir=tmp_path)


def test_a_download_that_fails_is_one_sentence(
    mnist: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(InputError, match="cannot be read or downloaded") as caught:
        convert("torchvision:FashionMNIST", tmp_path / "f.packed", data_dir=tmp_path / "empty")
    assert len(str(caught.value).splitlines()) == 1


def test_targets_that_are_no_classes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Captions(list):  # type: ignore[type-arg]
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            super().__init__([(None, "a cat")] * 3)

    monkeypatch.setattr(datasets, "MNIST", Captions)
    with pytest.raises(InputError, match="the targets of torchvision's MNIST are <U5"):
        convert("torchvision:MNIST", tmp_path / "x.packed", data_dir=tmp_path)
