"""Arrays in .npz files: mapped at their places, streamed when compressed, refused by name."""

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastcat.errors import InputError
from fastcat.loaders.convert import convert
from fastcat.loaders.formats import npz_arrays
from fastcat.loaders.formats.npz import npz_source
from fastcat.loaders.formats.npz_arrays import map_npz, npz_digest
from fastcat.loaders.formats.pack import load_pack
from fastcat.loaders.registry import load_dataset
from tests.harness.random_images import ARRAYS

CHECKOUT = Path(__file__).parents[3]
MEDMNIST = dict(
    zip(
        ("train_images", "train_labels", "test_images", "test_labels"),
        ARRAYS.values(),
        strict=True,
    )
)
SINGLE = {"image": ARRAYS["x_train"], "label": ARRAYS["y_train"]}


def converted(path: Path, out: str = "out.packed", **settings):  # type: ignore[no-untyped-def]
    return convert(str(path), path.with_name(out), data_dir=path.parent, **settings).dataset


def test_mapped_arrays_are_those_of_numpy_and_cannot_be_written(tmp_path: Path) -> None:
    more = {"empty": np.empty((0, 3)), "text": np.array(["cat", "dog"]), "zero": np.array(3.5)}
    np.savez(tmp_path / "x.npz", **ARRAYS, **more)
    mapped = map_npz(tmp_path / "x.npz")
    assert mapped.keys() == ARRAYS.keys() | more.keys()
    for name, array in (ARRAYS | more).items():
        assert np.array_equal(mapped[name], array)
        assert mapped[name].dtype == array.dtype
    assert isinstance(mapped["x_train"], np.memmap)
    assert not mapped["x_train"].flags.writeable


@pytest.mark.parametrize("arrays", [ARRAYS, MEDMNIST], ids=["keras", "medmnist"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_splits_are_converted_and_mapped_alike(
    tmp_path: Path, arrays: dict[str, np.ndarray], save: Callable[..., None]
) -> None:
    save(tmp_path / "x.npz", **arrays)
    data = converted(tmp_path / "x.npz")
    assert np.array_equal(data.train.images, ARRAYS["x_train"])
    assert np.array_equal(data.test.images, ARRAYS["x_test"])
    assert data.test.labels.tolist() == [0, 1, 2] * 3
    assert data.classes == ("0", "1", "2")
    if save is np.savez:
        mapped = load_dataset(str(tmp_path / "x.npz"), tmp_path)
        assert isinstance(mapped.train.images, np.memmap)
        assert mapped.digest == data.digest
        assert (mapped.name, mapped.crop_pad, mapped.flip) == ("x", data.crop_pad, data.flip)


def test_grey_images_without_a_channel_axis_get_one(tmp_path: Path) -> None:
    grey = {key: a[..., 0] if key.startswith("x") else a for key, a in ARRAYS.items()}
    np.savez(tmp_path / "x.npz", **grey)
    for data in (converted(tmp_path / "x.npz"), load_dataset(str(tmp_path / "x.npz"), tmp_path)):
        assert data.image_shape == (6, 5, 1)
        assert np.array_equal(data.train.images[..., 0], grey["x_train"])


@pytest.mark.parametrize("rows", [1000, 4])
def test_a_held_out_split_is_stratified_and_comes_from_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(npz_arrays, "rows_at_once", lambda _: rows)
    np.savez_compressed(tmp_path / "x.npz", **SINGLE)
    data = converted(tmp_path / "x.npz", test_fraction=0.2, seed=3)
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    both = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    label_of = {image.tobytes(): k for image, k in zip(*SINGLE.values(), strict=True)}
    assert [label_of.pop(image.tobytes()) for image in both] == labels.tolist()
    again = converted(tmp_path / "x.npz", "again.packed", test_fraction=0.2, seed=3)
    other = converted(tmp_path / "x.npz", "other.packed", test_fraction=0.2, seed=4)
    assert again.digest == data.digest != other.digest


@pytest.mark.parametrize("fraction", [None, 0.2])
@pytest.mark.parametrize("start", range(0, 25, 3))
def test_reading_goes_on_at_any_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int, fraction: float | None
) -> None:
    monkeypatch.setattr(npz_arrays, "rows_at_once", lambda _: 4)
    np.savez_compressed(tmp_path / "x.npz", **(SINGLE if fraction else ARRAYS))
    source = npz_source(tmp_path / "x.npz", test_fraction=fraction)
    whole, rest = (
        np.concatenate([np.empty((0, 6, 5, 3)), *(b.images for b in source.blocks("train", k))])
        for k in (0, start)
    )
    assert np.array_equal(rest, whole[start:])


def test_resized_arrays_are_as_pillow_makes_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **ARRAYS)
    assert converted(tmp_path / "x.npz", resize=3).image_shape == (3, 3, 3)


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **MEDMNIST, val_images=np.zeros(3))
    done = convert(str(tmp_path / "x.npz"), tmp_path / "x.packed", data_dir=tmp_path)
    assert done.notes == (f"not used: val_images of {tmp_path / 'x.npz'}",)


def test_the_digest_is_that_of_all_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "b.npz", **ARRAYS)
    np.savez(tmp_path / "c.npz", **{**ARRAYS, "y_test": 2 - ARRAYS["y_test"]})
    digests = [npz_digest(tmp_path / f"{name}.npz") for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def replaced(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{**ARRAYS, **arrays})


def cut(path: Path) -> None:
    np.savez(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-300])


def flipped(place: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.savez(path, **ARRAYS)
        raw = bytearray(path.read_bytes())
        raw[place] ^= 1
        path.write_bytes(raw)

    return write


def lying_header(path: Path) -> None:
    """A header that claims more images than the archive holds bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, array in ARRAYS.items():
            raw = io.BytesIO()
            np.save(raw, array)
            archive.writestr(f"{key}.npy", raw.getvalue().replace(b"(30,", b"(90,"))


def stretched(path: Path) -> None:
    """Sizes beyond the end of the file, in the archive's table and in the array's header."""
    np.savez(path, x_train=np.zeros((300, 8, 8), np.uint8))
    raw = path.read_bytes()
    size, more = (300 * 64 + 128).to_bytes(4, "little"), (3000 * 64 + 128).to_bytes(4, "little")
    path.write_bytes(
        raw.replace(size, more).replace(b"(300,", b"(3000,").replace(b", }  ", b", } ")
    )


FLOATS = np.linspace(0, 1, 30 * 90, dtype=np.float32).reshape(30, 6, 5, 3)
REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "with NaN": (replaced(x_train=np.where(FLOATS > 0.9, np.nan, FLOATS)), r"from nan to nan"),
    "normalised": (replaced(x_train=4 * FLOATS - 2), r"from -2 to 2, .* not normalised"),
    "floats": (replaced(x_train=FLOATS), r"float32 from 0 to 1, .*\(x_train \* 255\)\.round"),
    "floats of grey levels": (
        replaced(x_train=FLOATS * 255),
        r"from 0 to 255, .*save x_train\.ast",
    ),
    "wide integers": (
        replaced(x_test=np.full((9, 6, 5, 3), 255)),
        "x_test .*int64 from 255 to 255",
    ),
    "planes": (replaced(x_train=np.zeros((30, 3, 6, 5), np.uint8)), r"transpose\(0, 2, 3, 1\)"),
    "four channels": (replaced(x_train=np.zeros((30, 6, 5, 4), np.uint8)), "1 or 3 channels"),
    "other sizes": (replaced(x_test=np.zeros((9, 6, 6, 3), np.uint8)), "differ in shape"),
    "no images": (
        replaced(x_test=np.zeros((0, 6, 5, 3), np.uint8), y_test=np.zeros(0, int)),
        r"shape \(0, 6",
    ),
    "too few labels": (replaced(y_train=np.arange(29) % 3), r"expected integers \[30\]"),
    "several labels": (replaced(y_test=np.zeros((9, 14), int)), r"\[9, 14\]"),
    "labels of floats": (replaced(y_train=np.zeros(30)), "float64"),
    "objects": (replaced(y_train=np.array([{}] * 30)), "Python objects"),
    "Fortran order": (replaced(x_train=np.asfortranarray(ARRAYS["x_train"])), "Fortran order"),
    "labels from 1": (replaced(y_train=ARRAYS["y_train"] + 1), "such as 0, never occur"),
    "labels with a gap": (replaced(y_train=ARRAYS["y_train"] * 2), "2 of them, such as 1"),
    "an absurd label": (replaced(y_train=np.r_[np.arange(29) % 3, 2**62]), "never occur"),
    "a negative label": (replaced(y_train=ARRAYS["y_train"] - 1), "run from -1"),
    "a test label too many": (replaced(y_test=np.full(9, 3)), "test labels .* 3 to 3, .* 0 to 2"),
    "one split": (lambda p: np.savez(p, **SINGLE), r"x\.npz .*x\.packed --test-fraction 0\.2"),
    "unknown arrays": (lambda p: np.savez(p, a=np.zeros(3)), "has the arrays 'a', expected x_tr"),
    "no arrays": (lambda p: np.savez(p), r"has the arrays \(none\)"),
    "no archive": (lambda p: p.write_bytes(b"no archive"), "damaged or not an .npz"),
    "empty": (lambda p: p.write_bytes(b""), "damaged or not an .npz"),
    "cut": (cut, "damaged or not an .npz"),
    "a flipped bit": (flipped(1500), "damaged .*Bad CRC-32"),
    "a lying header": (lying_header, "another size than its header"),
    "a lying table": (stretched, "damaged|expected x_train"),
}


@pytest.mark.parametrize(("write", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_in_one_line_and_nothing_is_left(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "x.npz"
    write(path)
    for attempt in (
        lambda: load_dataset(str(path), tmp_path),
        lambda: converted(path),
    ):
        with pytest.raises(InputError, match=words) as caught:
            attempt()
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_members_beyond_the_file_are_not_mapped(tmp_path: Path) -> None:
    stretched(tmp_path / "x.npz")
    with pytest.raises(InputError):
        map_npz(tmp_path / "x.npz")


def test_a_compressed_file_names_the_command_that_converts_it(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", **ARRAYS)
    command = f"fastcat data convert {tmp_path}/x.npz {tmp_path}/x.packed"
    for read in (map_npz, lambda path: load_dataset(str(path), tmp_path)):
        with pytest.raises(InputError, match=command):
            read(tmp_path / "x.npz")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 0.001, 0.99, float("nan")])
def test_a_share_that_leaves_a_split_without_images_is_refused(
    tmp_path: Path, fraction: float
) -> None:
    np.savez(tmp_path / "x.npz", **SINGLE)
    with pytest.raises(InputError, match=r"--test-fraction"):
        converted(tmp_path / "x.npz", test_fraction=fraction)


@pytest.mark.slow
@pytest.mark.process
def test_a_compressed_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    images = np.zeros((4000, 128, 128, 3), np.uint8)  # 197 MB, which compress well
    images[:, 0, 0, 0] = np.arange(4000) % 251
    labels = np.arange(4000) % 2
    np.savez_compressed(
        tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10]
    )
    del images
    code = """
import sys
from pathlib import Path
from fastcat.loaders.formats.npz import npz_source
from fastcat.loaders.formats.pack_writer import write_pack
from tests.harness.peak_memory import peak_mib
folder = Path(sys.argv[1])
before = peak_mib()
write_pack(npz_source(folder / "x.npz"), folder / "x.packed", None)
print(peak_mib() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60
    data = load_pack(tmp_path / "x.packed")
    assert np.array_equal(data.train.images[:, 0, 0, 0], np.arange(4000) % 251)
