"""Checksums of files and arrays, and the digest of a data set."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

_CHUNK_BYTES = 1 << 20


def array_checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and values, as 64 hex digits."""
    state = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits. Raises OSError where it cannot be read."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def md5_of(path: Path) -> str:
    """MD5 of a file, as publishers of data sets give it, as 32 hex digits. Raises OSError."""
    state = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def npy_checksum(path: Path) -> str:
    """`array_checksum` of the array in an .npy file, which is not mapped.

    Raises OSError where it cannot be read, ValueError where its header is damaged.
    """
    with path.open("rb") as file:
        dtype, shape, _ = read_npy_header(file)
        state = hashlib.sha256(f"{dtype.str}{shape}".encode())
        while chunk := file.read(_CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def read_npy_header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """dtype, shape and whether in Fortran order; the file is left at the first value.

    Raises ValueError where the header is not that of an .npy file.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except OSError:
        raise
    except Exception as error:  # the header is a Python literal, damaged ones raise anything
        why = " ".join(str(error).split())
        raise ValueError(f"its .npy header is damaged: {why}") from error
    return dtype, shape, fortran


def dataset_digest(classes: Iterable[str], checksums: Iterable[str]) -> str:
    """SHA-256 over the class names in label order and the arrays' checksums, as 64 hex digits."""
    state = hashlib.sha256()
    for part in (*classes, "", *checksums):
        # A class folder's name need not be text: surrogateescape gives back its very bytes.
        state.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return state.hexdigest()
