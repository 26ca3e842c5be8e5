"""What stands beside the pixels of an image file: it may turn the image, and never condemns it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastcat.loaders.formats.decode import UnusableError, decode
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.formats.strip_metadata import without_metadata
from tests.harness.image_folders import noise

PIXELS = noise(1, 5, 9)
BOMB = zlib.compress(bytes(9 << 20))
TURNS = {
    1: PIXELS,
    2: PIXELS[:, ::-1],
    3: PIXELS[::-1, ::-1],
    4: PIXELS[::-1],
    5: PIXELS.transpose(1, 0, 2),
    6: np.rot90(PIXELS, -1),
    7: np.rot90(PIXELS, 2).transpose(1, 0, 2),
    8: np.rot90(PIXELS),
    9: PIXELS,
}


def saved(kind: str, pixels: np.ndarray = PIXELS, **form: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **form)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def chunk(kind: bytes, data: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(kind + data) if check is None else check
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_with(*chunks: bytes, behind: bool = False, **form: object) -> bytes:
    """A PNG of PIXELS with these chunks before its pixels, or behind them."""
    raw = saved("PNG", **form)
    place = raw.index(b"IEND" if behind else b"IDAT") - 4
    return raw[:place] + b"".join(chunks) + raw[place:]


def jpeg_with(marker: int, data: bytes, pixels: np.ndarray = PIXELS, **form: object) -> bytes:
    """A JPEG of `pixels` with this segment before all others."""
    raw = saved("JPEG", pixels, quality=95, **form)
    return raw[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + raw[2:]


CHUNKS = {
    "EXIF without a header": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "EXIF of another sum": chunk(b"eXIf", turned(1), check=1),
    "EXIF as text": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      6\n4578zz"),
    "text of another sum": chunk(b"tEXt", b"Title\0x", check=1),
    "text, compressed oddly": chunk(b"zTXt", b"Title\0\7x"),
    "text, a bomb": chunk(b"zTXt", b"Title\0\0" + BOMB),
    "text in Unicode, a bomb": chunk(b"iTXt", b"Title\0\1\0\0\0" + BOMB),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="),
    "colour profile": chunk(b"iCCP", b"sRGB\0\0junk"),
    "colour profile, a bomb": chunk(b"iCCP", b"sRGB\0\0" + BOMB),
    "gamma, short": chunk(b"gAMA", b"x"),
    "resolution, short": chunk(b"pHYs", b"x"),
    "animation, short": chunk(b"acTL", b"x"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("odd", CHUNKS.values(), ids=CHUNKS.keys())
def test_damage_beside_the_pixels_of_a_png_is_passed_over(odd: bytes, behind: bool) -> None:
    assert np.array_equal(decode(png_with(odd, behind=behind), None), PIXELS)


SEGMENTS = {
    "EXIF without a header": (0xE1, b"Exif\0\0nonsense!!"),
    "EXIF in a circle": (
        0xE1,
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\0\0\0\0",
    ),
    "colour profile": (0xE2, b"ICC_PROFILE\0\1\1junk"),
    "colour profile, short": (0xE2, b"ICC_PROFILE\0"),
    "several images": (0xE2, b"MPF\0junkjunk"),
    "JFIF, short": (0xE0, b"JFIF"),
    "Adobe, short": (0xEE, b"Adobe"),
    "comment": (0xFE, b"\xff\xfe"),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("odd", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_damage_beside_the_pixels_of_a_jpeg_is_passed_over(odd: tuple[int, bytes]) -> None:
    expected = decode(saved("JPEG", quality=95), None)
    assert np.array_equal(decode(jpeg_with(*odd), None), expected)


def test_damage_beside_the_pixels_of_a_webp_is_passed_over() -> None:
    odd = {"exif": b"Exif\0\0nonsense!!", "icc_profile": b"nonsense", "xmp": b"<nonsense"}
    assert np.array_equal(decode(saved("WEBP", lossless=True, **odd), None), PIXELS)


def test_bytes_behind_an_image_are_passed_over() -> None:
    for kind in ("PNG", "BMP", "TIFF", "GIF", "JPEG"):
        raw = saved(kind)
        assert np.array_equal(decode(raw + b"more" * 9, None), decode(raw, None)), kind


def test_damaged_pixels_are_refused_with_and_without_what_stands_beside() -> None:
    """Catches a second attempt that is content with less than whole pixels."""
    odd = CHUNKS["text, a bomb"]
    raw = png_with(odd)
    pixels = bytearray(raw)
    pixels[raw.index(b"IDAT") + 20] ^= 8
    jpeg = jpeg_with(*SEGMENTS["colour profile, short"])
    for damaged in (bytes(pixels), raw[:-40], jpeg[:-20], jpeg[: len(jpeg) // 2]):
        with pytest.raises(UnusableError, match="damaged"):
            decode(damaged, None)


def test_a_sound_orientation_counts_whatever_is_damaged_beside_it() -> None:
    raw = png_with(CHUNKS["text, a bomb"], exif=turned(6))
    assert np.array_equal(decode(raw, None), TURNS[6])
    raw = jpeg_with(*SEGMENTS["colour profile, short"], exif=turned(6))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(saved("JPEG", quality=95))))
    assert np.array_equal(decode(raw, None), np.rot90(np.asarray(upright), -1))


def test_the_colours_of_a_cmyk_jpeg_stay_when_its_profile_is_damaged() -> None:
    """Catches Adobe's mark taken for metadata: without it the colours are others."""
    pixels = noise(2, 16, 16, 4)
    out = io.BytesIO()
    Image.fromarray(pixels, "CMYK").save(out, "JPEG", quality=95)
    raw = out.getvalue()
    odd = raw[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + raw[2:]
    assert np.array_equal(decode(odd, None), decode(raw, None))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF of LZW"])
def test_every_orientation_is_turned_once(kind: str, orientation: int) -> None:
    """Catches TIFFs turned twice: Pillow turns those itself, and its older versions hide it."""
    if kind.startswith("TIFF"):
        form = {"compression": "tiff_lzw"} if "LZW" in kind else {}
        raw = saved("TIFF", tiffinfo={0x0112: min(orientation, 8)}, **form)
        expected = TURNS[min(orientation, 8)]
    else:
        raw = saved(kind, lossless=True, exif=turned(orientation))
        expected = TURNS[orientation]
    assert np.array_equal(decode(raw, None), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "MPO"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    more = [Image.fromarray(noise(seed, 5, 9)) for seed in (2, 3)]
    form: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    raw = saved(kind, save_all=True, append_images=more, **form)
    alone = Image.open(io.BytesIO(saved({"MPO": "JPEG"}.get(kind, kind), **form)))
    assert np.array_equal(decode(raw, None), np.asarray(alone.convert("RGB")))


def test_what_is_no_png_and_no_jpeg_is_left_as_it_is() -> None:
    for raw in (b"", b"hello", saved("BMP"), saved("PNG"), saved("PNG")[:9], b"\xff\xd8"):
        assert without_metadata(raw) == raw
    for length in (b"\xff" * 4, b"\0\0"):
        raw = saved("PNG")[:8] + length + b"tEXt"
        assert without_metadata(raw) == raw


def test_a_folder_of_such_images_is_packed(images: Path) -> None:
    whole = load_folder(images).train.images.copy()
    other = images.with_name("other")
    images.rename(other)
    file = other / "train/cat/0.png"
    raw = file.read_bytes()
    place = raw.index(b"IDAT") - 4
    file.write_bytes(raw[:place] + CHUNKS["EXIF as text"] + raw[place:])
    assert np.array_equal(load_folder(other).train.images, whole)
