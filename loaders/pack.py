"""A decoded image folder: <folder>.packed/ with four arrays and pack.json, whole or not there.

    train-images.npy  test-images.npy   uint8 [N, H, W, C]
    train-labels.npy  test-labels.npy   int64 [N]
    pack.json                           format, classes, counts, shape, checksums, source listing

It is built in a hidden directory beside the folder, flushed to the disk, then renamed.
"""

import errno
import json
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from .dataset import Split
from .decode import decode_blocks, find_reference, refusal
from .digest import dataset_digest, file_checksum
from .listing import SPLITS, Listing

FORMAT = 1
MANIFEST = "pack.json"
ARRAYS = tuple(f"{split}-{kind}.npy" for split in SPLITS for kind in ("images", "labels"))
_KEYS = {"format", "classes", "counts", "shape", "arrays", "listing", "digest"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def packed_path(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.packed"


def remove_leftovers(packed: Path) -> None:
    """Remove what killed packers left; call it only while no other process can be packing."""
    temporary = re.compile(rf"\.{re.escape(packed.name)}\.[0-9a-f]{{32}}")
    for path in packed.parent.iterdir():
        if temporary.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def write_pack(listing: Listing, packed: Path, progress: Callable[[int, int], None] | None) -> None:
    """Decode every listed image into `packed`; where another process was first, its pack stays.

    progress(done, total) is called in this thread, with numbers of images.
    Raises InputError for images that cannot be used and where nothing can be written.
    """
    temporary = packed.parent / f".{packed.name}.{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        _write_arrays(temporary, listing, progress)
        _write_manifest(temporary / MANIFEST, listing)
        for name in (*ARRAYS, MANIFEST, ""):
            _flush(temporary / name)
        try:
            temporary.rename(packed)
        except OSError:
            if not (packed / MANIFEST).is_file():
                raise
        _flush(packed.parent)
    except OSError as error:
        raise InputError(_why_not_written(error, listing, packed)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_pack(packed: Path, listing: Listing | None) -> tuple[tuple[str, ...], Split, Split, str]:
    """Check every byte of a pack, and map it: the classes, train, test, and the digest.

    listing: the source folder as it is now, None where only the pack is left.
    Raises InputError where the pack is damaged, of another format, or not of these files.
    """
    manifest = _read_manifest(packed)
    if listing and listing.digest != manifest["listing"]:
        before = sum(manifest["counts"].values())
        raise _refused(
            packed,
            f"the files in {listing.root} changed after packing (then {before}, now "
            f"{len(listing)}; names or sizes differ)",
        )
    for name in ARRAYS:
        _check_array(packed, name, manifest["arrays"][name])
    classes = tuple(manifest["classes"])
    checksums = [manifest["arrays"][name]["sha256"] for name in ARRAYS]
    digest = dataset_digest(classes, checksums)
    if digest != manifest["digest"]:
        raise _refused(packed, f"{MANIFEST} is damaged (its digest differs)")
    train, test = (_map_split(packed, split, manifest) for split in SPLITS)
    return classes, train, test, digest


def _write_arrays(
    directory: Path, listing: Listing, progress: Callable[[int, int], None] | None
) -> None:
    reference = find_reference(listing)
    grey, done = True, 0
    faults: list[tuple[str, str]] = []
    for split in SPLITS:
        names = listing.names[split]
        np.save(directory / f"{split}-labels.npy", listing.labels[split])
        # Plain writes: on a full disk a memory map would end the process by a signal.
        with (
            (directory / f"{split}-images.npy").open("wb") as file,
            closing(decode_blocks(listing.root, names, reference)) as blocks,
        ):
            _write_header(file, (len(names), reference.height, reference.width, 3))
            for block in blocks:
                file.write(block.images.data)
                grey = grey and block.grey
                faults += block.faults
                done += len(block.images)
                if progress:
                    progress(done, len(listing))
    if faults:
        raise refusal(listing, faults)
    if grey:
        for split in SPLITS:
            _keep_one_channel(directory / f"{split}-images.npy")


def _write_header(file: Any, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _keep_one_channel(path: Path, images_at_once: int = 4096) -> None:
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    narrow = path.with_suffix(".grey")
    with narrow.open("wb") as file:
        _write_header(file, (*images.shape[:3], 1))
        for start in range(0, len(images), images_at_once):
            file.write(images[start : start + images_at_once, ..., :1].tobytes())
    narrow.replace(path)


def _write_manifest(path: Path, listing: Listing) -> None:
    arrays: dict[str, dict[str, Any]] = {
        name: {
            "bytes": (path.parent / name).stat().st_size,
            "sha256": file_checksum(path.parent / name),
        }
        for name in ARRAYS
    }
    shape = np.load(path.parent / ARRAYS[0], mmap_mode="r", allow_pickle=False).shape[1:]
    manifest = {
        "format": FORMAT,
        "classes": listing.classes,
        "counts": {split: len(listing.names[split]) for split in SPLITS},
        "shape": shape,
        "arrays": arrays,
        "listing": listing.digest,
        "digest": dataset_digest(listing.classes, [arrays[name]["sha256"] for name in ARRAYS]),
    }
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(packed: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((packed / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
        complete = manifest.keys() == _KEYS and manifest["arrays"].keys() == set(ARRAYS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(packed, f"its {MANIFEST} is missing or damaged") from error
    if version != FORMAT:
        raise _refused(packed, f"it has format {version!r}, expected {FORMAT}")
    if not complete:
        raise _refused(packed, f"its {MANIFEST} is damaged (entries are missing)")
    return manifest


def _check_array(packed: Path, name: str, expected: dict[str, Any]) -> None:
    try:
        size = (packed / name).stat().st_size
        if size != expected["bytes"]:
            raise _refused(packed, f"{name} has {size} bytes, expected {expected['bytes']}")
        if file_checksum(packed / name) != expected["sha256"]:
            raise _refused(packed, f"{name} is damaged (its checksum differs)")
    except OSError as error:
        raise _refused(packed, f"{name} cannot be read ({error.strerror})") from error


def _map_split(packed: Path, split: str, manifest: dict[str, Any]) -> Split:
    images, labels = (
        np.load(packed / f"{split}-{kind}.npy", mmap_mode="r", allow_pickle=False)
        for kind in ("images", "labels")
    )
    expected = (manifest["counts"][split], *manifest["shape"])
    if images.shape != expected or labels.shape != expected[:1]:
        raise _refused(packed, f"{split} has shape {images.shape}, expected {expected}")
    return Split(images=images, labels=labels)


def _refused(packed: Path, what: str) -> InputError:
    remove = f"rm -r {shlex.quote(str(packed))}"
    return InputError(
        f"{packed} cannot be used, {what}: type {remove} and run again to pack the images anew"
    )


def _why_not_written(error: OSError, listing: Listing, packed: Path) -> str:
    parent = packed.parent
    if error.errno in _FULL:
        return (
            f"no room to pack {listing.root} into {parent} ({error.strerror}): free space there, "
            "or copy or link the folder to a place that has some and give that path"
        )
    if error.errno in _FORBIDDEN:
        return (
            f"no permission to write {packed.name} into {parent} ({error.strerror}): copy or link "
            f"the folder {listing.root} to a place where you may write and give that path"
        )
    return f"{packed} could not be written ({error}): mend that, or copy the folder elsewhere"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
