"""Checksums: which exact images and labels a run has seen."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

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


def dataset_digest(classes: Iterable[str], checksums: Iterable[str]) -> str:
    """SHA-256 over the class names in label order and the arrays' checksums, as 64 hex digits."""
    state = hashlib.sha256()
    for part in (*classes, "", *checksums):
        # A class folder's name need not be text: surrogateescape gives back its very bytes.
        state.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return state.hexdigest()
