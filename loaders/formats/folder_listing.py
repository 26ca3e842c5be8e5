"""The files of an image folder and their classes; no image is read.

train/<class>/*             test/<class>/*              also val, valid or validation for test
train/<class>/images/*      val/images/* with val/val_annotations.txt        Tiny ImageNet's own
"""

import errno
import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from fastcat.errors import InputError

from ..labels import only_one_class
from .source import SPLITS

FORM = "an image folder holds train/<class>/* and test/<class>/* (or val/<class>/*)"
ANNOTATIONS = "val_annotations.txt"
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_SHOWN = 3
# left in folders by Windows, macOS and network storage, besides names that begin with a dot
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}

# by class folder, spelt as in train/: (path relative to the root, size in bytes)
Files = dict[str, list[tuple[str, int]]]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of an image folder.

    root: the folder.
    classes: readable names, in the order of the class folders' names.
    names: by split, paths relative to root ("train/cat/0.png"), by class and then by name.
    labels: by split, int64 [N] in the order of `names`.
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
    """The image files below root, without files that systems leave there, such as ._0.png.

    Class names that differ only in how Unicode writes them are one: macOS writes é as two
    characters.

    Raises InputError where the folder is missing, a split or class is missing or empty, there is
    only one class, the splits' classes differ, or something else lies among the images.
    """
    if not root.is_dir():
        wrong = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"the image folder {root} {wrong}: {FORM}")
    try:
        found = {"train": _list_split(root, "train")}
        test = _test_folder(root)
        if (root / test / ANNOTATIONS).is_file():
            found["test"] = _list_annotated(root, test, found["train"])
        else:
            found["test"] = _list_split(root, test)
        kinds = _common_classes(root, test, found)
        classes = _readable(root, kinds)
    except OSError as error:
        loops = error.errno == errno.ELOOP
        remedy = "remove it" if loops else "make it readable for this user"
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): {remedy}") from error
    names: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray] = {}
    state = hashlib.sha256()
    for split in SPLITS:
        files = [(name, size) for kind in kinds for name, size in found[split][kind]]
        names[split] = [name for name, _ in files]
        counts = [len(found[split][kind]) for kind in kinds]
        labels[split] = np.repeat(np.arange(len(kinds), dtype=np.int64), counts)
        for name, size in files:
            state.update(os.fsencode(name) + f"\0{size}\0".encode())
    return Listing(root=root, classes=classes, names=names, labels=labels, digest=state.hexdigest())


def some(offenders: Sequence[str], mark: str = ", ") -> str:
    """The first three, and how many there are in all where there are more."""
    shown = mark.join(offenders[:_SHOWN])
    hidden = len(offenders) - _SHOWN
    return f"{shown} and {hidden} more ({len(offenders)} in all)" if hidden > 0 else shown


def _test_folder(root: Path) -> str:
    """Name of the test split's folder: the first of `_TEST_FOLDERS` whose images have classes."""
    there = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    for name in there:
        without_labels = [entry.name for entry in _visible(root / name)] == ["images"]
        if not without_labels:
            return name
    if there:
        raise InputError(
            f"{root / there[0]} has images without classes: put them into one folder a class"
        )
    raise InputError(f"{root} has no folder test/: {FORM}")


def _list_split(root: Path, split: str) -> Files:
    if not (root / split).is_dir():
        inner = [e.name for e in _visible(root) if (root / e.name / split).is_dir()]
        hint = f"; or is it {root / inner[0]}" if inner else ""
        raise InputError(f"{root} has no folder {split}/: {FORM}{hint}")
    entries = _visible(root / split)
    if strays := [f"{split}/{entry.name}" for entry in entries if not entry.is_dir()]:
        raise InputError(
            f"{root} has files beside the class folders, {_quoted(strays)}: {FORM}, "
            "so move them into a class or remove them"
        )
    found: Files = {}
    odd: list[str] = []
    for kind in (entry.name for entry in entries):
        place = f"{split}/{kind}"
        files = _visible(root / place)
        if any(file.name == "images" and file.is_dir() for file in files):
            # beside Tiny ImageNet's images lie tables of boxes
            odd += [f"{place}/{f.name}" for f in files if not f.name.endswith(("images", ".txt"))]
            place += "/images"
            files = _visible(root / place)
        odd += [f"{place}/{file.name}" for file in files if not file.is_file()]
        if not odd:
            found[kind] = [(f"{place}/{file.name}", file.stat().st_size) for file in files]
    if odd:
        raise InputError(
            f"class folders hold image files only, but {root} has {_quoted(odd)}: "
            "remove folders and broken links from the classes"
        )
    for name, kinds in groupby(sorted(found, key=_composed), _composed):
        if len(same := list(kinds)) > 1:
            raise InputError(
                f"{root / split} has two folders of the class {name!r}, in Unicode "
                f"{' and '.join(map(ascii, same))}: move their images into one of them"
            )
    if not found:
        raise InputError(f"{root / split} is empty, it has no class folders: {FORM}")
    if empty := [f"{split}/{kind}" for kind, files in found.items() if not files]:
        raise InputError(
            f"{root} has classes without images, {_quoted(empty)}: fill or remove them"
        )
    return found


def _list_annotated(root: Path, split: str, train: Files) -> Files:
    """Images in one folder, with a table of classes: file name, tab, class, more columns."""
    table = root / split / ANNOTATIONS
    images = root / split / "images"
    if not images.is_dir():
        raise InputError(f"{root} has {split}/{ANNOTATIONS} but no folder {split}/images")
    sizes = {entry.name: entry.stat().st_size for entry in _visible(images) if entry.is_file()}
    found: Files = {kind: [] for kind in train}
    written = {_composed(kind): kind for kind in train}
    for number, line in enumerate(table.read_text("utf-8", "replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        kind = rest.partition("\t")[0].strip()
        kind = written.get(_composed(kind), kind)
        if kind not in found or name not in sizes:
            raise InputError(
                f"line {number} of {table} names {name!r} of class {kind!r}, expected an image of "
                f"{images} that no line before named, a tab, and a class folder of {root}/train"
            )
        found[kind].append((f"{split}/images/{name}", sizes.pop(name)))
    if sizes:
        raise InputError(f"{table} gives no class for {_quoted(sorted(sizes))}: add or remove them")
    if empty := [kind for kind, files in found.items() if not files]:
        raise InputError(f"{table} names no image of the classes {_quoted(empty)}: add some")
    return {kind: sorted(files) for kind, files in found.items()}


def _readable(root: Path, kinds: Sequence[str]) -> tuple[str, ...]:
    """Readable class names: the first synonym in words.txt (class, tab, synonyms), if there."""
    if not (root / "words.txt").is_file():
        return tuple(kinds)
    words = {}
    for line in (root / "words.txt").read_text("utf-8", "replace").splitlines():
        kind, _, synonyms = line.partition("\t")
        words[kind] = synonyms.partition(",")[0].strip()
    names = [words.get(kind) or kind for kind in kinds]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({kind})"
        for name, kind in zip(names, kinds, strict=True)
    )


def _composed(name: str) -> str:
    """The name in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", name)


def _visible(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        kept = [e for e in entries if not (e.name[0] == "." or e.name.lower() in _LEFT_BY_SYSTEMS)]
    return sorted(kept, key=lambda e: e.name)


def _common_classes(root: Path, test: str, found: dict[str, Files]) -> list[str]:
    kinds = set(found["train"])
    written = {_composed(kind): kind for kind in kinds}
    # by the names of train/
    found["test"] = {written.get(_composed(k), k): files for k, files in found["test"].items()}
    others = set(found["test"])
    if kinds != others:
        lone = [f"train/{kind}" for kind in sorted(kinds - others)]
        lone += [f"{test}/{kind}" for kind in sorted(others - kinds)]
        raise InputError(
            f"the classes of train/ and {test}/ in {root} differ, only one of them has "
            f"{_quoted(lone)}: give both the same class folders"
        )
    if len(kinds) == 1:
        raise only_one_class(root, min(kinds))
    return sorted(kinds)


def _quoted(names: Sequence[str]) -> str:
    return some([repr(name) for name in names])
