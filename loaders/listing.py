"""The files of an image folder, train/<class>/* and test/<class>/*, before any of them is read."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastcat.errors import InputError

SPLITS = ("train", "test")
_FORM = "an image folder holds train/<class>/* and test/<class>/*"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Listing:
    """names: per split, paths relative to root ("train/cat/0.png"), by class and then by name.

    labels: per split, int64 [N] in the order of names, indices into classes (which are sorted).
    digest: SHA-256 over the names and the files' sizes in bytes.
    """

    root: Path
    classes: tuple[str, ...]
    names: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    digest: str

    def __len__(self) -> int:
        return sum(len(names) for names in self.names.values())


def list_folder(root: Path) -> Listing:
    """List every image file below root; names that begin with a dot are ignored.

    Raises InputError where the folder is missing, a split or class is missing or empty, there is
    only one class, the splits' classes differ, or something else lies among the images.
    """
    if not root.is_dir():
        wrong = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"the image folder {root} {wrong}: {_FORM}")
    try:
        found = {split: _list_split(root, split) for split in SPLITS}
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable for this user"
        ) from error
    classes = _common_classes(root, found)
    names: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray] = {}
    state = hashlib.sha256()
    for split in SPLITS:
        files = [(name, size) for kind in classes for name, size in found[split][kind]]
        names[split] = [name for name, _ in files]
        counts = [len(found[split][kind]) for kind in classes]
        labels[split] = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
        for name, size in files:
            state.update(os.fsencode(name) + f"\0{size}\0".encode())
    return Listing(root=root, classes=classes, names=names, labels=labels, digest=state.hexdigest())


def some(offenders: Sequence[str], mark: str = ", ") -> str:
    """The first three offenders, and how many there are where there are more."""
    shown = mark.join(offenders[:_SHOWN])
    hidden = len(offenders) - _SHOWN
    return f"{shown} and {hidden} more ({len(offenders)} in all)" if hidden > 0 else shown


def _list_split(root: Path, split: str) -> dict[str, list[tuple[str, int]]]:
    """Per class, the sorted (relative name, size in bytes) of its files."""
    if not (root / split).is_dir():
        raise InputError(f"{root} has no folder {split}/: {_FORM}")
    entries = _visible(root / split)
    if strays := [f"{split}/{entry.name}" for entry in entries if not entry.is_dir()]:
        raise InputError(
            f"{root} has files beside the class folders, {_quoted(strays)}: {_FORM}, "
            "so move them into a class or remove them"
        )
    found: dict[str, list[tuple[str, int]]] = {}
    odd: list[str] = []
    for kind in (entry.name for entry in entries):
        files = _visible(root / split / kind)
        odd += [f"{split}/{kind}/{file.name}" for file in files if not file.is_file()]
        if not odd:
            found[kind] = [(f"{split}/{kind}/{file.name}", file.stat().st_size) for file in files]
    if odd:
        raise InputError(
            f"class folders hold image files only, but {root} has {_quoted(odd)}: "
            "remove folders and broken links from the classes"
        )
    if not found:
        raise InputError(f"{root / split} is empty, it has no class folders: {_FORM}")
    if empty := [f"{split}/{kind}" for kind, files in found.items() if not files]:
        raise InputError(
            f"{root} has classes without images, {_quoted(empty)}: fill or remove them"
        )
    return found


def _visible(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _common_classes(
    root: Path, found: dict[str, dict[str, list[tuple[str, int]]]]
) -> tuple[str, ...]:
    train, test = (set(found[split]) for split in SPLITS)
    if train != test:
        lone = [f"train/{kind}" for kind in sorted(train - test)]
        lone += [f"test/{kind}" for kind in sorted(test - train)]
        raise InputError(
            f"the classes of train/ and test/ in {root} differ, only one of them has "
            f"{_quoted(lone)}: give both the same class folders"
        )
    if len(train) == 1:
        raise InputError(f"{root} has only one class, {min(train)!r}: at least two are needed")
    return tuple(sorted(train))


def _quoted(names: Sequence[str]) -> str:
    return some([repr(name) for name in names])
