"""Layouts of image folders, and pixels of every mode that an image file may have."""

import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.errors import InputError
from fastcat.loaders.datasets import tiny_imagenet_200
from fastcat.loaders.formats.decode import UnusableError, decode, read_image
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import make_folder, make_tiny_imagenet, noise, refusal_of


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_stands_in_for_a_missing_test(tmp_path: Path, name: str) -> None:
    digest = load_folder(make_folder(tmp_path / "plain")).digest
    path = make_folder(tmp_path / "pets")
    (path / "test").rename(path / name)
    assert load_folder(path).digest == digest


def test_test_counts_before_val(images: Path) -> None:
    shutil.copytree(images / "train", images / "val")
    assert len(load_folder(images).test) == 4


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    root = make_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    data = load_folder(root)
    assert data.classes == ("goldfish", "crane", "Egyptian cat")
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.test.labels.tolist() == [0, 1, 2]
    order = ["val_1.JPEG", "val_2.JPEG", "val_0.JPEG"]
    expected = [read_image(root / "val/images" / name, None) for name in order]
    assert np.array_equal(data.test.images, np.stack(expected))
    assert (data.image_shape, data.crop_pad, data.flip) == ((64, 64, 3), 8, True)


def test_classes_of_one_word_are_told_apart(tmp_path: Path) -> None:
    root = make_tiny_imagenet(tmp_path / "tiny")
    (root / "words.txt").write_text("n02124075\tcrane\nn02012849\tcrane, bird\n")
    names = ("n01443537", "crane (n02012849)", "crane (n02124075)")
    assert load_folder(root).classes == names


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("val_0.JPEG\tn99\t0\n", "line 1 of .*class 'n99'"),
        ("val_9.JPEG\tn02124075\t0\n", "line 1 of .*'val_9.JPEG'"),
        ("val_0.JPEG\tn02124075\nval_0.JPEG\tn02124075\n", "line 2 of .*no line before"),
        ("val_0.JPEG\tn02124075\n", "no class for 'val_1.JPEG', 'val_2.JPEG'"),
        ("".join(f"val_{n}.JPEG\tn02124075\n" for n in range(3)), "no image of the classes 'n01"),
        ("\0\xff\n", "line 1 of"),
    ],
)
def test_a_table_of_labels_that_does_not_fit_is_refused(
    tmp_path: Path, table: str, words: str
) -> None:
    root = make_tiny_imagenet(tmp_path / "tiny")
    (root / "val/val_annotations.txt").write_text(table, encoding="latin-1")
    with pytest.raises(InputError, match=words):
        load_folder(root)


def test_images_without_classes_are_no_test_split(images: Path) -> None:
    shutil.rmtree(images / "test")
    (images / "test/images").mkdir(parents=True)
    assert "images without classes" in refusal_of(images)


def test_tiny_imagenet_by_name_is_the_folder_in_the_data_folder(tmp_path: Path) -> None:
    make_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    data = load_dataset(tiny_imagenet_200.NAME, tmp_path)
    assert data.name == tiny_imagenet_200.NAME
    assert len(data.train) == 9


GREY = noise(3, channels=1)
MODES = {
    "LA": (Image.fromarray(noise(4, channels=2), "LA"), noise(4, channels=2)[..., :1]),
    "RGBA": (Image.fromarray(noise(5, channels=4), "RGBA"), noise(5, channels=4)[..., :3]),
    "1": (Image.fromarray(GREY > 100), (GREY > 100)[..., None] * np.uint8(255)),
}


@pytest.mark.parametrize(("image", "expected"), MODES.values(), ids=MODES.keys())
def test_alpha_is_dropped_and_grey_stays_grey(
    image: Image.Image, expected: np.ndarray, tmp_path: Path
) -> None:
    image.save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png", None), expected)


@pytest.mark.parametrize("mode", ["PA", "P", "La", "RGBa", "LAB", "YCbCr", "HSV", "CMYK", "RGBX"])
def test_every_mode_of_eight_bits_is_converted(mode: str) -> None:
    from fastcat.loaders.formats.decode import to_pixels

    image = Image.new("RGBA", (5, 4), (200, 30, 60, 255))
    if mode in ("La", "PA"):
        image = image.convert("LA" if mode == "La" else "P").convert(mode)
    elif mode in ("RGBa",):
        image = image.convert(mode)
    elif mode == "LAB":
        image = Image.new("LAB", (5, 4), (128, 0, 0))
    else:
        image = image.convert("RGB").convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = to_pixels(image, None)
    assert pixels.shape == (4, 5, 1 if mode == "La" else 3)
    if mode in ("P", "PA", "RGBa", "YCbCr", "HSV", "CMYK", "RGBX"):
        # a palette has a few colours only
        assert np.abs(pixels[0, 0].astype(int) - (200, 30, 60)).max() <= (60 if "P" in mode else 4)


def test_a_cmyk_jpeg_has_the_colours_that_are_seen(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (220, 20, 40))
    red.convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    pixels = read_image(tmp_path / "x.jpg", None)
    assert np.abs(pixels.astype(int) - (220, 20, 40)).max() < 12


def deep_png(channels: int) -> bytes:
    """A PNG of 2 x 2 pixels with 16 bits a channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", 2, 2, 16, colour, 0, 0, 0)
    rows = (b"\0" + b"\x12\x34" * channels * 2) * 2
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


DEEP = {f"png of {channels} channels": deep_png(channels) for channels in (1, 2, 3, 4)}
DEEP["ppm"] = b"P6 2 2 65535\n" + b"\x12\x34" * 12
DEEP["pgm"] = b"P5 2 2 65535\n" + b"\x12\x34" * 4


@pytest.mark.parametrize("raw", DEEP.values(), ids=DEEP.keys())
def test_sixteen_bits_are_refused_and_not_cut_to_eight(raw: bytes) -> None:
    with pytest.raises(UnusableError, match="more than 8 bits a channel"):
        decode(raw, None)


def test_a_ppm_of_eight_bits_is_read() -> None:
    assert decode(b"P6 2 2 255\n" + bytes(range(12)), None).ravel().tolist() == list(range(12))
