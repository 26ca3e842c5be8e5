"""A packed data set: the folder NAME.packed with four arrays and pack.json.

train-images.npy  test-images.npy   uint8 [N, H, W, C]
train-labels.npy  test-labels.npy   int64 [N]
pack.json                           what they hold, of which source, with checksums and a seal
"""

import hashlib
import json
import os
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from ..dataset import Dataset, Split
from .digest import dataset_digest, npy_checksum
from .source import SPLITS

FORMAT = 2
MANIFEST = "pack.json"
SUFFIX = ".packed"
ARRAYS = tuple(f"{split}-{kind}.npy" for split in SPLITS for kind in ("images", "labels"))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The fields of pack.json.

    classes: names in the order of the labels.
    counts: images by split.
    shape: height, width, channels.
    crop_pad, flip: as of `Dataset`.
    skipped: number of images of the source that could not be used.
    unreadable: the first thousand of these, and why.
    resize: side that images were resized to, or None.
    source: digest of the source.
    checksums: by file name.
    digest: of the data set.
    """

    classes: list[str]
    counts: dict[str, int]
    shape: list[int]
    crop_pad: int
    flip: bool
    skipped: int
    unreadable: list[str]
    resize: int | None
    source: str
    checksums: dict[str, str]
    digest: str


def packed_path(folder: Path) -> Path:
    return folder.parent / f"{folder.name}{SUFFIX}"


def is_pack(path: Path) -> bool:
    return path.suffix == SUFFIX and path.is_dir()


def load_pack(packed: Path) -> Dataset:
    """A pack, mapped, after every byte was checked; its name is its folder's without ".packed".

    Raises InputError where the pack is damaged or of another format.
    """
    packed = Path(os.path.abspath(packed.expanduser()))
    manifest = read_manifest(packed)
    for name in ARRAYS:
        _check_array(packed, name, manifest.checksums[name])
    if manifest.digest != dataset_digest(manifest.classes, map(manifest.checksums.get, ARRAYS)):  # type: ignore[arg-type]
        raise refused(packed, f"{MANIFEST} is damaged (its digest differs)")
    train, test = (_map_split(packed, split, manifest) for split in SPLITS)
    return Dataset(
        name=packed.stem,
        classes=tuple(manifest.classes),
        train=train,
        test=test,
        crop_pad=manifest.crop_pad,
        flip=manifest.flip,
        digest=manifest.digest,
    )


def read_manifest(packed: Path) -> Manifest:
    """The manifest. Raises InputError where it is missing, damaged or of another format."""
    try:
        raw: Any = json.loads((packed / MANIFEST).read_text(encoding="utf-8"))
        version = raw.pop("format")
        seal = raw.pop("seal", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(packed, f"its {MANIFEST} is missing or damaged") from error
    if version != FORMAT:
        raise refused(packed, f"it has format {version!r}, expected {FORMAT}")
    if seal != _seal(raw):
        raise refused(packed, f"its {MANIFEST} is damaged (its checksum differs)")
    if raw.keys() != {field.name for field in fields(Manifest)}:
        raise refused(packed, f"its {MANIFEST} is damaged (entries are missing)")
    manifest = Manifest(**raw)
    if not _well_formed(manifest):
        raise refused(packed, f"its {MANIFEST} is damaged (entries of the wrong form)")
    return manifest


def write_manifest(packed: Path, manifest: Manifest) -> None:
    """Write pack.json. Raises OSError."""
    raw = asdict(manifest)
    text = json.dumps({"format": FORMAT, **raw, "seal": _seal(raw)}, indent=2)
    (packed / MANIFEST).write_text(text + "\n", encoding="utf-8")


def refused(packed: Path, what: str) -> InputError:
    remove = f"rm -r {shlex.quote(str(packed))}"
    return InputError(
        f"{packed} cannot be used, {what}: type {remove} and run again to pack the images anew"
    )


def _seal(raw: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _well_formed(manifest: Manifest) -> bool:
    def whole(*values: object) -> bool:
        return all(type(value) is int and value >= 0 for value in values)

    def texts(values: object) -> bool:
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    return (
        texts(manifest.classes)
        and isinstance(manifest.counts, dict)
        and manifest.counts.keys() == set(SPLITS)
        and whole(*manifest.counts.values(), manifest.crop_pad, manifest.skipped)
        and isinstance(manifest.shape, list)
        and len(manifest.shape) == 3
        and whole(*manifest.shape)
        and isinstance(manifest.flip, bool)
        and isinstance(manifest.checksums, dict)
        and manifest.checksums.keys() == set(ARRAYS)
        and texts(manifest.unreadable)
        and texts([*manifest.checksums.values(), manifest.source, manifest.digest])
    )


def _check_array(packed: Path, name: str, expected: str) -> None:
    try:
        checksum = npy_checksum(packed / name)
    except OSError as error:
        raise refused(packed, f"{name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise refused(packed, f"{name} is damaged ({error})") from error
    if checksum != expected:
        raise refused(packed, f"{name} is damaged (its checksum differs)")


def _map_split(packed: Path, split: str, manifest: Manifest) -> Split:
    try:
        images, labels = (
            np.load(packed / f"{split}-{kind}.npy", mmap_mode="r", allow_pickle=False)
            for kind in ("images", "labels")
        )
    except (OSError, ValueError) as error:
        raise refused(packed, f"its {split} arrays cannot be mapped ({error})") from error
    expected = (manifest.counts[split], *manifest.shape)
    if images.shape != expected or labels.shape != expected[:1]:
        raise refused(packed, f"{split} has shape {images.shape}, expected {expected}")
    if images.dtype != np.uint8 or labels.dtype != np.int64:
        raise refused(packed, f"{split} has types {images.dtype} and {labels.dtype}")
    return Split(images=images, labels=labels)
