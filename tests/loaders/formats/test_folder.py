"""Image folders: exact pixels and labels, and one sentence for each folder that cannot be used."""

import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fastcat.cli import main
from fastcat.loaders.formats import image_source
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import beside, make_folder, noise, refusal_of


def test_png_pixels_and_labels_are_exact_and_in_name_order(images: Path) -> None:
    data = load_folder(images)
    expected = [Image.open(path) for path in sorted((images / "train").glob("*/*.png"))]
    assert np.array_equal(data.train.images, np.stack([np.asarray(image) for image in expected]))
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    assert data.test.labels.tolist() == [0] * 2 + [1] * 2
    assert data.train.labels.dtype == np.int64
    assert data.classes == ("cat", "dog")
    assert data.name == "pets"


def test_several_blocks_keep_the_order(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_source, "_BLOCK_IMAGES", 1)
    data = load_folder(images)
    expected = [np.asarray(Image.open(p)) for p in sorted((images / "train").glob("*/*.png"))]
    assert np.array_equal(data.train.images, np.stack(expected))


def test_arrays_are_read_only_memory_maps(images: Path) -> None:
    data = load_folder(images)
    assert isinstance(data.train.images, np.memmap)
    assert data.train.images.flags.c_contiguous
    assert not data.train.images.flags.writeable


def test_height_width_and_channels_are_not_mixed_up(tmp_path: Path) -> None:
    data = load_folder(make_folder(tmp_path / "wide", height=5, width=20))
    assert data.image_shape == (5, 20, 3)
    assert data.crop_pad == 1


def test_crop_pad_is_an_eighth_of_the_height(tmp_path: Path) -> None:
    data = load_folder(make_folder(tmp_path / "large", height=33, width=16))
    assert (data.crop_pad, data.flip) == (4, True)


def test_all_grey_images_give_one_channel(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "grey", channels=1)
    Image.fromarray(noise(9, channels=1) > 127).save(path / "train/cat/1.png")
    data = load_folder(path)
    assert data.image_shape == (8, 8, 1)
    assert np.array_equal(data.train.images[0, ..., 0], noise(0, channels=1))
    assert np.array_equal(data.train.images[1, ..., 0], (noise(9, channels=1) > 127) * 255)


@pytest.mark.parametrize("place", ["train/cat/1.png", "test/dog/1.png"])
def test_one_colour_image_anywhere_makes_all_images_rgb(tmp_path: Path, place: str) -> None:
    path = make_folder(tmp_path / "mixed", channels=1)
    Image.fromarray(noise(99)).save(path / place)
    data = load_folder(path)
    coloured = data.train.images[1] if place.startswith("train") else data.test.images[-1]
    assert np.array_equal(coloured, noise(99))
    assert np.array_equal(data.train.images[0], np.stack([noise(0, channels=1)] * 3, axis=-1))


def test_palette_alpha_and_cmyk_become_rgb_without_a_warning(images: Path) -> None:
    cat = images / "train/cat"
    palette = Image.fromarray(noise(20)).quantize(16)
    palette.save(cat / "0.png", transparency=bytes(range(16)))
    Image.fromarray(noise(21, channels=4), "RGBA").save(cat / "1.png")
    Image.fromarray(noise(22, channels=4), "CMYK").save(cat / "2.tif")
    (cat / "2.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_folder(images)
    assert np.array_equal(data.train.images[0], np.asarray(palette.convert("RGB")))
    assert np.array_equal(data.train.images[1], noise(21, channels=4)[..., :3])
    inverted = Image.fromarray(noise(22, channels=4), "CMYK").convert("RGB")
    assert np.array_equal(data.train.images[2], np.asarray(inverted))


def test_exif_orientation_turns_the_image_upright(images: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: upright is a quarter turn clockwise
    Image.fromarray(noise(30)).save(images / "train/cat/0.png", exif=exif)
    assert np.array_equal(load_folder(images).train.images[0], np.rot90(noise(30), k=-1))


def test_exif_orientation_counts_before_sizes_are_compared(tmp_path: Path) -> None:
    path = make_folder(tmp_path / "wide", height=4, width=8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(30, height=8, width=4)).save(path / "train/dog/0.png", exif=exif)
    assert load_folder(path).image_shape == (4, 8, 3)
    Image.fromarray(noise(30, height=8, width=4)).save(path / "train/dog/0.png")
    shutil.rmtree(path.with_name("wide.packed"))
    assert "--resize 64" in refusal_of(path)


def test_dot_files_are_ignored(images: Path) -> None:
    for name in (".DS_Store", "train/.cache", "train/cat/._0.png"):
        (images / name).write_text("not an image")
    assert len(load_folder(images).train) == 10


def test_progress_ends_at_the_number_of_images(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_source, "_BLOCK_IMAGES", 4)
    calls: list[tuple[int, int]] = []
    load_folder(images, lambda done, total: calls.append((done, total)))
    assert calls == [(4, 14), (8, 14), (10, 14), (14, 14)]


def test_digest_changes_with_a_pixel_a_label_and_a_class_name_only(tmp_path: Path) -> None:
    paths = [make_folder(tmp_path / name) for name in ("same", "pixel", "label")]
    paths += [make_folder(tmp_path / "name", classes=("cat", "fox"))]
    Image.fromarray(noise(99)).save(paths[1] / "test/dog/1.png")
    (paths[2] / "train/cat/4.png").rename(paths[2] / "train/dog/-.png")
    digests = {load_folder(path).digest for path in paths}
    assert len(digests) == 4
    assert load_folder(make_folder(tmp_path / "again")).digest == load_folder(paths[0]).digest


@pytest.mark.slow
@pytest.mark.skipif(
    "FASTCAT_CIFAR10_FOLDER" not in os.environ,
    reason="set FASTCAT_CIFAR10_FOLDER to an unpacked CIFAR-10 image folder",
)
def test_real_cifar10_images_pack_to_their_classes(tmp_path: Path) -> None:
    source = Path(os.environ["FASTCAT_CIFAR10_FOLDER"])
    path = tmp_path / "cifar"
    for split in ("train", "test"):
        for kind in (source / split).iterdir():
            (path / split / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[:200]:
                (path / split / kind.name / file.name).symlink_to(file.resolve())
    data = load_folder(path)
    assert data.image_shape == (32, 32, 3)
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    assert " ".join(data.classes) == classes
    for part in (data.train, data.test):
        assert np.array_equal(np.bincount(part.labels), [200] * 10)
    name = sorted(file.name for file in (path / "train/frog").iterdir())[7]
    with Image.open(path / "train/frog" / name) as image:
        assert np.array_equal(data.train.images[6 * 200 + 7], np.asarray(image))
    # A channel's mean over natural images: scaling, clipping or swapped axes would move it.
    assert np.all(np.abs(data.train.images.mean(axis=(0, 1, 2)) - [125, 123, 114]) < 6)


def remove_one_class(path: Path) -> None:
    for split in ("train", "test"):
        shutil.rmtree(path / split / "dog")


def remove_all_classes(path: Path) -> None:
    for kind in ("cat", "dog"):
        shutil.rmtree(path / "train" / kind)


def put_a_file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("")


def unlink_all(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def truncate(*files: Path) -> None:
    for file in files:
        file.write_bytes(file.read_bytes()[:-60])


def forge_size(file: Path, side: int) -> None:
    """A valid PNG header that claims side x side pixels."""
    with file.open("wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n")
        header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
        PngImagePlugin.putchunk(out, b"IHDR", header)
        PngImagePlugin.putchunk(out, b"IDAT", b"")


REFUSALS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing folder": (shutil.rmtree, ("pets", "does not exist", "train/<class>/*")),
    "a file": (
        put_a_file_instead,
        ("pets", "is not a folder"),
    ),
    "no train": (lambda p: shutil.rmtree(p / "train"), ("no folder train/",)),
    "no test": (lambda p: shutil.rmtree(p / "test"), ("no folder test/",)),
    "no classes": (
        remove_all_classes,
        ("train is empty", "class folders"),
    ),
    "class without images": (
        lambda p: unlink_all(p / "test/dog"),
        ("without images", "'test/dog'"),
    ),
    "one class": (remove_one_class, ("only one class", "'cat'")),
    "different classes": (
        lambda p: (p / "test/dog").rename(p / "test/fox"),
        ("differ", "'train/dog', 'test/fox'"),
    ),
    "class in test only": (
        lambda p: shutil.copytree(p / "test/dog", p / "test/fox"),
        ("differ", "'test/fox'", "same class folders"),
    ),
    "file beside the classes": (
        lambda p: (p / "train/list.txt").write_text("x"),
        ("beside the class folders", "'train/list.txt'"),
    ),
    "folder in a class": (
        lambda p: (p / "train/cat/more").mkdir(),
        ("image files only", "'train/cat/more'"),
    ),
    "broken link": (
        lambda p: (p / "train/cat/9.png").symlink_to("nowhere"),
        ("broken links", "'train/cat/9.png'"),
    ),
    "not an image": (
        lambda p: (p / "train/cat/notes.txt").write_text("hello"),
        ("1 of 15 images", "'train/cat/notes.txt' is not an image (JPEG, PNG", "remove"),
    ),
    "empty file": (
        lambda p: (p / "train/cat/9.png").write_bytes(b""),
        ("'train/cat/9.png' is not an image",),
    ),
    "program instead of pixels": (
        lambda p: Image.fromarray(noise(0)).save(p / "train/cat/9.png", "EPS"),
        ("'train/cat/9.png' is not an image",),
    ),
    "truncated image": (
        lambda p: truncate(p / "test/dog/1.png"),
        ("1 of 14 images", "'test/dog/1.png' is damaged", "replace"),
    ),
    "no image is good": (
        lambda p: truncate(*p.glob("*/*/*.png")),
        ("14 of 14 images", "'train/cat/0.png' is damaged", "11 more"),
    ),
    "different sizes": (
        lambda p: Image.fromarray(noise(0, 12, 10)).save(p / "train/dog/3.png"),
        ("'train/dog/3.png' is 10 x 12", "'train/cat/0.png' is 8 x 8", "--resize 64 to give all"),
    ),
    "16 bits": (
        lambda p: Image.fromarray(noise(0, channels=1).astype(np.uint16)).save(
            p / "train/dog/3.png"
        ),
        ("'train/dog/3.png' has more than 8 bits", "convert"),
    ),
    "decompression bomb": (
        lambda p: forge_size(p / "train/dog/3.png", 20_000),
        ("'train/dog/3.png' has so many pixels", "decompression bomb"),
    ),
    "many offenders": (
        lambda p: [(p / f"train/cat/x{n}.txt").write_text("") for n in range(7)],
        ("7 of 21 images", "x0.txt", "x2.txt", "and 4 more (7 in all)"),
    ),
    "line break in a name": (
        lambda p: (p / "train/cat/a\nb.png").write_bytes(b""),
        (r"'train/cat/a\nb.png'",),
    ),
    "name that is not text": (
        lambda p: Path(os.fsdecode(os.fsencode(p / "train/cat") + b"/\xff.png")).write_bytes(b""),
        (r"'train/cat/\udcff.png'",),
    ),
}


@pytest.mark.parametrize(("spoil", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refused_in_one_line_that_names_the_offender_and_leaves_nothing(
    images: Path, spoil: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    spoil(images)
    message = refusal_of(images)
    assert [word for word in words if word not in message] == []
    assert len(message.splitlines()) == 1
    assert beside(images) == set()


def test_more_than_three_offenders_are_counted_not_listed(images: Path) -> None:
    for number in range(7):
        (images / f"train/cat/x{number}.txt").write_text("")
    assert "x3.txt" not in refusal_of(images)


def test_a_size_between_warning_and_error_of_the_bomb_guard_is_refused(images: Path) -> None:
    forge_size(images / "train/dog/3.png", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        assert "decompression bomb" in refusal_of(images)


def test_giving_the_packed_copy_itself_is_the_same_data(images: Path) -> None:
    digest = load_folder(images).digest
    assert load_dataset(str(images.with_name("pets.packed")), images).digest == digest


def test_wrong_sizes_name_the_command_that_can_be_typed(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(noise(0, 12, 10)).save(images / "train/dog/3.png")
    command = re.search(r"type fastcat (data convert .* --resize 64)", refusal_of(images))
    assert command
    assert main(shlex.split(command[1])) == 0
    assert load_folder(images).image_shape == (64, 64, 3)
