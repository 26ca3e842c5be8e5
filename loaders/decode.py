"""Image files to uint8 pixels, in parallel: Pillow lets other threads run while it decodes.

Some 0.15 ms for a JPEG of 32 x 32, mostly in the interpreter; large images scale with the cores.
Files that cannot be used are collected, not raised one by one, so that one run names them all.
"""

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastcat.errors import InputError

from .listing import Listing, some

# Raster formats only: Pillow would hand others, such as EPS, to an external program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_BLOCK_IMAGES = 256
_BLOCK_BYTES = 8 << 20
_MAX_WORKERS = 16


class UnusableError(Exception):
    """One file that cannot be packed: its text follows the file's name in a sentence."""

    def __init__(self, why: str, remedy: str = "remove or replace what is unusable") -> None:
        super().__init__(why)
        self.remedy = remedy


@dataclass(frozen=True)
class Reference:
    """The image whose size, in pixels, all others must have."""

    name: str
    height: int
    width: int

    def wrong_size(self, height: int, width: int) -> UnusableError:
        return UnusableError(
            f"is {width} x {height} pixels but {self.name!r} is {self.width} x {self.height}",
            remedy="resize them first so that all images have one size",
        )


@dataclass(frozen=True)
class Block:
    """images: uint8 [N, H, W, 3]; grey: every file had one channel; faults: (text, remedy)."""

    images: np.ndarray
    grey: bool
    faults: list[tuple[str, str]]


def decode(path: Path, reference: Reference | None = None) -> np.ndarray:
    """One image, turned upright as its EXIF data say, without alpha; of several frames the first.

    Returns uint8 [H, W, 1] of a grey or black-and-white file, else [H, W, 3].
    Raises UnusableError, also where the size is not that of the reference.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UnusableError(f"cannot be read ({error.strerror})") from error
    try:
        image = Image.open(BytesIO(raw), formats=FORMATS)
        _check_header(image, reference)
        ImageOps.exif_transpose(image, in_place=True)
        # Alpha is dropped anyway, and Pillow warns when it converts this form of it.
        image.info.pop("transparency", None)
        mode = "L" if image.mode in ("L", "1") else "RGB"
        pixels = np.asarray(image.convert(mode)).reshape(image.height, image.width, -1)
    except UnusableError:
        raise
    except UnidentifiedImageError as error:
        raise UnusableError(f"is not an image ({', '.join(FORMATS)})") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb() from error
    except Exception as error:  # damaged files raise whatever Pillow's decoders stumble over
        raise UnusableError(f"is damaged ({' '.join(str(error).split())})") from error
    if reference and pixels.shape[:2] != (reference.height, reference.width):
        raise reference.wrong_size(*pixels.shape[:2])
    return pixels


def find_reference(listing: Listing) -> Reference:
    """The first image that can be decoded. Raises InputError where there is none."""
    faults: list[tuple[str, str]] = []
    for name in (name for names in listing.names.values() for name in names):
        try:
            height, width, _ = decode(listing.root / name).shape
            return Reference(name, height, width)
        except UnusableError as fault:
            faults.append((f"{name!r} {fault}", fault.remedy))
    raise refusal(listing, faults)


def refusal(listing: Listing, faults: Sequence[tuple[str, str]]) -> InputError:
    """The sentence that names the first faults, their number, and what to do about them."""
    remedies = dict.fromkeys(remedy for _, remedy in faults)
    return InputError(
        f"{len(faults)} of {len(listing)} files in {listing.root} cannot be packed: "
        f"{some([text for text, _ in faults])}; {', '.join(remedies)}"
    )


def decode_blocks(
    root: Path, names: Sequence[str], reference: Reference
) -> Generator[Block, None, None]:
    """Decode the files in order, in blocks; only a few blocks are in memory at any time."""
    size = min(_BLOCK_IMAGES, max(1, _BLOCK_BYTES // (3 * reference.height * reference.width)))
    workers = min(_MAX_WORKERS, _usable_cores())
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[Future[Block]] = deque()
    try:
        for start in range(0, len(names), size):
            part = names[start : start + size]
            waiting.append(pool.submit(_decode_block, root, part, reference))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_block(root: Path, names: Sequence[str], reference: Reference) -> Block:
    images = np.zeros((len(names), reference.height, reference.width, 3), dtype=np.uint8)
    grey = True
    faults: list[tuple[str, str]] = []
    for image, name in zip(images, names, strict=True):
        try:
            pixels = decode(root / name, reference)
        except UnusableError as fault:
            faults.append((f"{name!r} {fault}", fault.remedy))
            continue
        image[:] = pixels
        grey = grey and pixels.shape[2] == 1
    return Block(images, grey, faults)


def _check_header(image: Image.Image, reference: Reference | None) -> None:
    """Refuse what the header already tells, before time is spent on decoding."""
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _bomb()
    if image.mode.startswith(("I", "F")):
        # Pillow would clip the values at 255 without a word.
        raise UnusableError(
            f"has more than 8 bits a channel (mode {image.mode})", "convert to 8 bits"
        )
    # Either way round, since EXIF data may still turn the image.
    if reference and {image.height, image.width} != {reference.height, reference.width}:
        raise reference.wrong_size(image.height, image.width)


def _bomb() -> UnusableError:
    return UnusableError("has so many pixels that it may be a decompression bomb")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
