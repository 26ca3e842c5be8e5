"""The arrays of an .npz file: uncompressed ones are memory-mapped, compressed ones streamed."""

import hashlib
import shlex
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from fastcat.errors import InputError

from .digest import read_npy_header
from .source import rows_at_once

_CHUNK_BYTES = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1

Header = tuple[np.dtype, tuple[int, ...]]


def map_npz(path: Path) -> dict[str, np.ndarray]:
    """By name, read-only memory maps of the arrays in an uncompressed .npz file.

    Only headers are read. Raises InputError where the file is damaged or compressed, and for
    arrays of objects or in Fortran order.
    """
    with opened(path) as archive:
        return {name: _map(archive, path, info) for name, info in members(archive, path).items()}


def npz_digest(path: Path) -> str:
    """SHA-256 over the arrays' names, sizes and stored checksums; no array is read."""
    with opened(path) as archive:
        infos = sorted(members(archive, path).items())
        state = repr([(name, info.CRC, info.file_size) for name, info in infos])
    return hashlib.sha256(state.encode("utf-8", "backslashreplace")).hexdigest()


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The open archive. Raises InputError for any error of reading it inside the context."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile and its decompressors raise many kinds
        raise InputError(
            f"{path} is damaged or not an .npz file ({' '.join(str(error).split())}): "
            "write it anew with np.savez"
        ) from error


def members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's entry of each array, by the array's name."""
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    names = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(names) != len(infos):
        raise InputError(f"{path} has two arrays of one name: write it anew with np.savez")
    return names


def header(archive: zipfile.ZipFile, path: Path, key: str) -> Header:
    """dtype and shape of an array, from its header. Raises where they do not fit the archive."""
    info = archive.getinfo(f"{key}.npy")
    with archive.open(info) as file:
        return _read_header(file, path, key, info)


def stream(path: Path, key: str) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of an array, block by block; its checksum is checked at the end."""
    with opened(path) as archive:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as file:
            dtype, shape = _read_header(file, path, key, info)
            row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=object))
            at_once = rows_at_once(row_bytes)
            for begin in range(0, shape[0], at_once):
                count = min(at_once, shape[0] - begin)
                raw = file.read(count * row_bytes)
                if len(raw) != count * row_bytes:
                    raise ValueError(f"{key} is cut short")
                yield begin, np.frombuffer(raw, dtype=dtype).reshape(count, *shape[1:])


def check_crc(archive: zipfile.ZipFile, key: str) -> None:
    """Read an array to its end, where zipfile compares its checksum and raises its errors."""
    with archive.open(f"{key}.npy") as file:
        while file.read(_CHUNK_BYTES):
            pass


def _map(archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    key = info.filename.removesuffix(".npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(
            f"{path} is compressed and cannot be mapped: type fastcat data convert "
            f"{shlex.quote(str(path))} {shlex.quote(str(path.with_suffix('.packed')))}"
        )
    dtype, shape = header(archive, path, key)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        magic, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    end = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes + info.file_size
    if magic != b"PK\3\4" or info.compress_size != info.file_size or info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{key} is not where the file says")
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if not size:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=end - size, shape=shape)


def _read_header(file: IO[bytes], path: Path, key: str, info: zipfile.ZipInfo) -> Header:
    dtype, shape, fortran = read_npy_header(file)
    if dtype.hasobject:
        raise InputError(f"{key} in {path} holds Python objects: save it as an array of numbers")
    if fortran and len(shape) > 1:
        raise InputError(
            f"{key} in {path} is in Fortran order: save it with np.ascontiguousarray({key})"
        )
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if any(extent < 0 for extent in shape) or file.tell() + size != info.file_size:
        raise ValueError(f"{key} has another size than its header says")
    return dtype, shape
