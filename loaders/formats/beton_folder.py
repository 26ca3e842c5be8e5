"""A data set as .beton files: the folder NAME.beton with train.beton, test.beton and set.json.

It is written in a hidden directory beside it, which is then renamed. Files made by FFCV have no
set.json: their classes are numbers, and only their structure is checked.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from fastcat.errors import InputError
from fastcat.files import explained

from ..class_names import numbered
from ..dataset import Dataset, Progress
from ..labels import count_classes
from .beton import read_beton, write_beton
from .digest import dataset_digest, file_checksum
from .source import SPLITS
from .staging import flush, locked

MANIFEST = "set.json"
FORMAT = 1
_KEYS = {"format", "classes", "crop_pad", "flip", "digest", "files"}


def is_beton_set(folder: Path) -> bool:
    return (folder / "train.beton").is_file()


def write_betons(dataset: Dataset, folder: Path, progress: Progress | None = None) -> None:
    """Write a data set; a folder that another process wrote first stays.

    progress: called with (done, total) images.
    Raises InputError where files cannot be written.
    """
    part = folder.parent / f".{folder.name}.part"
    total = len(dataset.train) + len(dataset.test)
    with explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent):
            if is_beton_set(folder):
                return
            shutil.rmtree(part, ignore_errors=True)
            try:
                part.mkdir()
                done = 0
                for name, split in (("train", dataset.train), ("test", dataset.test)):
                    report = partial(_report, progress, done, total)
                    write_beton(part / f"{name}.beton", split, report)
                    done += len(split)
                (part / MANIFEST).write_text(json.dumps(_manifest(dataset, part), indent=2) + "\n")
                for path in (*part.iterdir(), part):
                    flush(path)
                part.rename(folder)
                flush(folder.parent)
            finally:
                shutil.rmtree(part, ignore_errors=True)


def _report(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress:
        progress(before + done, total)


def load_betons(folder: Path) -> Dataset:
    """The data set, mapped. Every byte is checked; of FFCV's own files the structure.

    Raises InputError for files that are missing or damaged, or differ in the shape of their images.
    """
    files = {"train": folder / "train.beton", "test": folder / "test.beton"}
    if not files["test"].exists() and (folder / "val.beton").exists():
        files["test"] = folder / "val.beton"
    checksums = {}
    for name, path in files.items():
        if not path.is_file():
            raise InputError(f"{folder} has no {path.name}: expected train.beton and test.beton")
        checksums[name] = file_checksum(path)
    manifest = _read_manifest(folder, checksums)
    train, test = (read_beton(files[name]) for name in SPLITS)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InputError(f"train and test images in {folder} differ in size or channels")
    if manifest is None:
        classes = numbered(count_classes(train.labels, "train", str(folder)))
        manifest = {
            "classes": classes,
            "crop_pad": max(1, train.images.shape[1] // 8),
            "flip": True,
            "digest": dataset_digest(classes, checksums.values()),
        }
    return Dataset(
        name=folder.stem,
        classes=tuple(manifest["classes"]),
        train=train,
        test=test,
        crop_pad=manifest["crop_pad"],
        flip=manifest["flip"],
        digest=manifest["digest"],
        betons=folder,
    )


def _manifest(dataset: Dataset, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "classes": dataset.classes,
        "crop_pad": dataset.crop_pad,
        "flip": dataset.flip,
        # as of the same images in another format: a run may be resumed with either
        "digest": dataset.digest,
        "files": {name: file_checksum(folder / f"{name}.beton") for name in SPLITS},
    }


def _read_manifest(folder: Path, checksums: dict[str, str]) -> dict[str, Any] | None:
    remedy = f"remove {folder} and write it anew with fastcat data convert SOURCE {folder}"
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise InputError(
                f"{folder} has format {manifest['format']!r}, expected {FORMAT}: {remedy}"
            )
        whole = (
            manifest.keys() == _KEYS
            and all(isinstance(name, str) for name in manifest["classes"])
            and isinstance(manifest["digest"], str)
            and isinstance(manifest["crop_pad"], int)
            and 0 <= manifest["crop_pad"] < 1 << 16
            and isinstance(manifest["flip"], bool)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged: {remedy}") from error
    if not whole:
        raise InputError(f"{folder / MANIFEST} is damaged: {remedy}")
    for name, checksum in checksums.items():
        if manifest["files"].get(name) != checksum:
            raise InputError(f"{folder / name}.beton is damaged (its checksum differs): {remedy}")
    return manifest
