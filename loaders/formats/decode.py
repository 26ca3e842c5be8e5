"""Decoding an image file to uint8 pixels."""

import shlex
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .source import Fault, fit
from .strip_metadata import without_metadata

# Raster formats only: Pillow would hand others, such as EPS, to an external program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_GREY = ("L", "1", "LA", "La")
# by EXIF orientation, the operation that turns the image upright
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnusableError(Exception):
    """An image that cannot be packed. The message continues a sentence after the image's name."""

    def __init__(
        self,
        why: str,
        remedy: str = "remove or replace what is unusable, or leave it out with fastcat data "
        "convert --skip-unreadable",
        skippable: bool = True,
    ) -> None:
        super().__init__(why)
        self.remedy = remedy
        self.skippable = skippable

    def about(self, name: str) -> Fault:
        return Fault(f"{name!r} {self}", self.remedy, self.skippable)


@dataclass(frozen=True)
class Size:
    """The size that every image of a source must have.

    height, width: in pixels.
    like: name of the image that has this size.
    origin, out: what to give `fastcat data convert` to resize the images instead.
    """

    height: int
    width: int
    like: str
    origin: str
    out: str

    def check(self, height: int, width: int) -> None:
        if (height, width) != (self.height, self.width):
            raise UnusableError(
                f"is {width} x {height} pixels but {self.like!r} is {self.width} x {self.height}",
                f"type fastcat data convert {shlex.quote(self.origin)} "
                f"{shlex.quote(self.out)} --resize 64 to give all images one size",
                skippable=False,
            )


def read_image(path: Path, size: Size | int | None) -> np.ndarray:
    """The pixels of an image file, as of `decode`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror})") from error
    return decode(raw, size)


def decode(raw: bytes, size: Size | int | None) -> np.ndarray:
    """Pixels uint8 [H, W, 1] of a grey or black-and-white file, else [H, W, 3].

    The image is turned upright by its EXIF data, alpha is dropped, and of several frames the first
    is taken.
    raw: bytes of the file.
    size: the size that the image must have, or the side of a square to resize it to, or None.
    Raises UnusableError.
    """
    try:
        return _decode(raw, size)
    except UnusableError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableError(f"is not an image ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb() from error
    except Exception as error:  # damaged files raise whatever Pillow's decoders stumble over
        raise UnusableError(f"is damaged ({' '.join(str(error).split())})") from error


def _decode(raw: bytes, size: Size | int | None) -> np.ndarray:
    try:
        return to_pixels(Image.open(BytesIO(raw), formats=FORMATS), size)
    except UnusableError:
        raise
    except Exception:  # perhaps metadata are damaged and pixels are whole
        bare = without_metadata(raw)
        if bare == raw:
            raise
        return to_pixels(Image.open(BytesIO(bare), formats=FORMATS), size)


def to_pixels(image: Image.Image, size: Size | int | None) -> np.ndarray:
    """As `decode`, of an image opened by Pillow. Pillow's own errors are raised too."""
    _check_header(image, size)
    image.load()
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    image = grey_or_colour(image)
    if isinstance(size, int):
        image = fit(image, size)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    if isinstance(size, Size):
        size.check(image.height, image.width)
    return pixels


def grey_or_colour(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, without alpha. Raises UnusableError for more than 8 bits."""
    _check_depth(image)
    if "transparency" in image.info:
        # Alpha is dropped anyway, and Pillow warns when it converts this form of it.
        image = image.copy()
        del image.info["transparency"]
    if image.mode in ("La", "RGBa"):  # alpha multiplied in, which has no direct way out
        image = image.convert(image.mode.upper())
    return image.convert("L" if image.mode in _GREY else "RGB")


def _orientation(image: Image.Image) -> object:
    """EXIF orientation; None where EXIF data are missing or damaged."""
    if image.format == "TIFF":  # Pillow has turned it already
        return None
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged blocks raise whatever Pillow's parsers stumble over
        return None


def _check_depth(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")) or _is_deep(image):
        # Pillow would clip the values at 255, or drop their lower half, without a word.
        raise UnusableError(
            f"has more than 8 bits a channel (mode {image.mode})", "convert to 8 bits"
        )


def _check_header(image: Image.Image, size: Size | int | None) -> None:
    """Raises UnusableError for what the header tells, before the image is decoded."""
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _bomb()
    _check_depth(image)
    # Either way round, since EXIF data may still turn the image.
    if isinstance(size, Size) and {image.height, image.width} != {size.height, size.width}:
        size.check(image.height, image.width)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has 16 bits a channel that Pillow reads into 8."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        for argument in arguments:
            if isinstance(argument, str) and ";16" in argument:
                return True
            if tile[0] in ("ppm", "ppm_plain") and isinstance(argument, int) and argument > 255:
                return True
    return False


def _bomb() -> UnusableError:
    return UnusableError("has so many pixels that it may be a decompression bomb")
