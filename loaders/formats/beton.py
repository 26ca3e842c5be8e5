"""FFCV's .beton files, version 2 with raw pixels: written, checked and mapped.

    header, a descriptor a field        "image" (RGB, or an array for other channels), "label"
    a row an image                      where its pixels stand, its size, its label
    pages                               pixels; none crosses from one page into the next
    allocation table                    per image its number, place and bytes

FFCV's writer waits for ever on a full disk, and its reader follows any offset in a damaged file:
both are done here, and FFCV only decodes (loaders/backends/ffcv.py).
Source: FFCV 1.0.2, ffcv/types.py, ffcv/writer.py, ffcv/fields.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fastcat.errors import InputError

from ..dataset import Split

_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
_FIELD = np.dtype(
    [("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True
)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_RGB = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_ROWS = {
    2: np.dtype([("f0", _RGB), ("f1", "<i8")], align=True),
    4: np.dtype([("f0", "<u8"), ("f1", "<i8")], align=True),
}
_VERSION = 2
_INT, _RGB_ID, _ARRAY_ID = 1, 2, 4
_RAW = 1
_LEAST_PAGE, _LARGEST_PAGE = 1 << 23, 1 << 31
_CHUNK_BYTES = 8 << 20


class BetonImages:
    """The raw pixels of a .beton file, uint8 [N, H, W, C], read when indexed.

    file: the mapped bytes.
    places: byte offset of each image, [N].
    shape: height, width, channels.
    """

    def __init__(self, file: np.ndarray, places: np.ndarray, shape: tuple[int, ...]) -> None:
        self.file = file
        self.places = places
        self.shape = (len(places), *shape)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The images [n, H, W, C] of a slice or an array of rows."""
        places = self.places[rows]
        size = int(np.prod(self.shape[1:]))
        images = np.empty((len(places), size), dtype=np.uint8)
        for image, place in zip(images, places.tolist(), strict=True):
            image[:] = self.file[place : place + size]
        return images.reshape(-1, *self.shape[1:])


def write_beton(path: Path, split: Split, progress: Callable[[int], object] | None = None) -> None:
    """Write a split.

    progress: called with the number of images done.
    Raises OSError where the file cannot be written, InputError for images that are too large.
    """
    count, height, width, channels = split.images.shape
    size = height * width * channels
    page = max(_LEAST_PAGE, 1 << (size - 1).bit_length())
    if page > _LARGEST_PAGE:
        raise InputError(f"images of {width} x {height} pixels are too large for a .beton file")
    type_id = _RGB_ID if channels == 3 else _ARRAY_ID
    rows = np.zeros(count, dtype=_ROWS[type_id])
    begin = -(-(_HEADER.itemsize + 2 * _FIELD.itemsize + rows.nbytes) // page) * page
    per_page = page // size
    pages, slots = np.divmod(np.arange(count, dtype=np.uint64), np.uint64(per_page))
    places = np.uint64(begin) + pages * np.uint64(page) + slots * np.uint64(size)
    if type_id == _RGB_ID:
        rows["f0"]["mode"] = _RAW
        rows["f0"]["width"], rows["f0"]["height"] = width, height
        rows["f0"]["data_ptr"] = places
    else:
        rows["f0"] = places
    rows["f1"] = split.labels
    end = begin + -(-count // per_page) * page
    header = np.zeros((), dtype=_HEADER)
    header["version"], header["num_fields"] = _VERSION, 2
    header["page_size"], header["num_samples"] = page, count
    header["alloc_table_ptr"] = end
    fields = np.zeros(2, dtype=_FIELD)
    _describe(fields[0], type_id, "image", (height, width, channels))
    _describe(fields[1], _INT, "label")
    with path.open("wb") as file:
        for part in (header, fields, rows):
            file.write(part.tobytes())
        _write_pixels(file, split, places, size, progress)
        file.seek(end)
        table = np.zeros(count, dtype=_ALLOCATION)
        table["sample_id"], table["ptr"], table["size"] = np.arange(count), places, size
        file.write(table.tobytes())


def _describe(field: Any, type_id: int, name: str, shape: tuple[int, ...] = ()) -> None:
    field["type_id"] = type_id
    field["name"][: len(name)] = np.frombuffer(name.encode(), dtype=np.uint8)
    if type_id == _ARRAY_ID:
        kind = json.dumps(np.dtype(np.uint8).descr).encode()
        head = np.zeros(33, dtype="<u8")
        head[: len(shape)], head[32] = shape, len(kind)
        arguments = np.frombuffer(head.tobytes() + kind, dtype=np.uint8)
        field["arguments"][: len(arguments)] = arguments


def _write_pixels(
    file: BinaryIO,
    split: Split,
    places: np.ndarray,
    size: int,
    progress: Callable[[int], object] | None,
) -> None:
    at_once = max(1, _CHUNK_BYTES // size)
    for first in range(0, len(places), at_once):
        images = split.images[first : first + at_once]
        for image, place in zip(images, places[first : first + at_once].tolist(), strict=True):
            # a gap at the end of a page becomes zeros
            if file.tell() != place:
                file.seek(place)
            file.write(image.tobytes())
        if progress:
            progress(min(first + at_once, len(places)))


def read_beton(path: Path) -> Split:
    """Images, mapped, and labels of a .beton file, after its structure was checked.

    Raises InputError for a file that is damaged or cut short, and for other fields than raw images
    of one size as "image" and integers as "label".
    """
    try:
        file = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise _refused(path, f"it cannot be read ({error})") from error
    header = _part(path, file, 0, _HEADER, 1)[0]
    if header["version"] != _VERSION:
        raise _refused(path, f"it has version {header['version']}, expected {_VERSION}")
    count, table_begin = int(header["num_samples"]), int(header["alloc_table_ptr"])
    if header["num_fields"] != 2 or not count:
        raise _refused(path, f"it has {header['num_fields']} fields and {count} images")
    fields = _part(path, file, _HEADER.itemsize, _FIELD, 2)
    names = [bytes(field["name"]).rstrip(b"\0") for field in fields]
    kinds = [int(field["type_id"]) for field in fields]
    if names != [b"image", b"label"] or kinds[0] not in _ROWS or kinds[1] != _INT:
        raise _refused(path, "its fields are not an image and an integer label")
    rows_begin = _HEADER.itemsize + 2 * _FIELD.itemsize
    rows = _part(path, file, rows_begin, _ROWS[kinds[0]], count)
    shape, places = _layout(path, kinds[0], fields[0], rows)
    size = int(np.prod(shape))
    table = _part(path, file, table_begin, _ALLOCATION, count)
    in_order = table[np.argsort(table["ptr"], kind="stable")]
    least, most = np.uint64(rows_begin + rows.nbytes), table_begin - size
    if not (
        len(file) == table_begin + table.nbytes
        and most >= 0
        and (places >= least).all()
        and (places <= np.uint64(most)).all()
        and np.array_equal(np.sort(places), in_order["ptr"])
        and (table["size"] == size).all()
    ):
        raise _refused(path, "it is damaged or cut short (its places do not fit the file)")
    return Split(images=BetonImages(file, places, shape), labels=rows["f1"].astype(np.int64))


def _layout(
    path: Path, kind: int, field: Any, rows: np.ndarray
) -> tuple[tuple[int, ...], np.ndarray]:
    """Height, width and channels of the images, and the byte offset of each, [N]."""
    if kind == _RGB_ID:
        images = rows["f0"]
        if not (images["mode"] == _RAW).all():
            raise _refused(path, 'it holds JPEGs (expected write_mode="raw")')
        height, width = int(images["height"][0]), int(images["width"][0])
        same = (images["height"] == height).all() and (images["width"] == width).all()
        if not same or not height or not width:
            raise _refused(path, "its images are of different sizes or empty")
        return (height, width, 3), images["data_ptr"].copy()
    head = field["arguments"][: 33 * 8].view("<u8")
    shape = tuple(int(side) for side in head[:32] if side)
    kind_text = bytes(field["arguments"][33 * 8 :][: int(min(head[32], 64))])
    if len(shape) != 3 or max(shape) >= 1 << 16 or b'"|u1"' not in kind_text:
        raise _refused(path, "its images are not arrays [height, width, channels] of uint8")
    return shape, rows["f0"].copy()


def _part(path: Path, file: np.ndarray, begin: int, dtype: np.dtype, count: int) -> np.ndarray:
    end = begin + count * dtype.itemsize
    if end > len(file):
        raise _refused(path, f"it is cut short ({len(file)} bytes, expected at least {end})")
    return np.frombuffer(file[begin:end].tobytes(), dtype=dtype)


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} cannot be used, {what}: write it anew with fastcat data convert SOURCE OUT.beton"
    )
