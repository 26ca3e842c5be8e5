"""A teacher from its weight file."""

import hashlib
import re

from fastcat.checkpoint import check_fit, load_weights
from fastcat.errors import InputError
from fastcat.loaders.dataset import Dataset
from fastcat.loaders.registry import find_path
from fastcat.peer import Teacher


def load_teacher(name: str, weights: str, arch: str | None, dataset: Dataset) -> Teacher:
    """The teacher of a .safetensors file, on the CPU; arch: what it is said to be, if anything.

    Raises InputError for a file that cannot be read, and for one of another architecture, or of
    other classes or channels than the data.
    """
    path = find_path(weights)
    model, info = load_weights(path)
    check_fit(path, info, dataset)
    if arch not in (None, info.arch):
        raise InputError(f"{path} holds a {info.arch}, not a {arch}: leave @{arch} out")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Teacher(name, info.arch, model, str(path), digest)


def with_absolute_weights(text: str) -> str:
    """The peers' text with the weight files of teachers found from any directory.

    Raises InputError for a path that could not be read back from the text.
    """

    def absolute(match: re.Match[str]) -> str:
        path = str(find_path(match[0]).absolute())
        if set(path) & set(",:@"):
            raise InputError(f"teacher's weights {path}: expected a path without comma, : and @")
        return path

    return re.sub(r"(?<=\bteacher:weights=)[^,:@]+", absolute, text)
