"""Writing a pack: images are appended to arrays in a hidden directory, which is then renamed.

A journal in it says how many images are done: after a kill, packing the same source again goes on
there and ends with the same bytes.
"""

import os
import shutil
import time
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastcat.errors import InputError

from ..dataset import Progress
from .digest import dataset_digest, npy_checksum
from .image_source import refusal
from .pack import ARRAYS, MANIFEST, Manifest, write_manifest
from .pack_journal import Journal, read_journal
from .source import SPLITS, Source
from .staging import flush, publish, staging_folder, why_not_written

JOURNAL = "journal.json"
_JOURNAL_SECONDS = 2.0
_SHOWN = 3
_ENOUGH_FAULTS = 1000  # errors: counting on through millions of images would take hours
_HEADER_BYTES = 128  # of .npy files with the shapes that there are here


def write_pack(
    source: Source, packed: Path, progress: Progress | None, skip_unreadable: bool = False
) -> int:
    """Pack a source; returns the number of images read by this call.

    A pack that another process finished first stays.
    packed: folder to write.
    progress: called in this thread with (done, total) images.
    skip_unreadable: leave out images that cannot be used; a class must not become empty.
    Raises InputError for images that cannot be used, and where files cannot be written. What was
    packed by then is kept only when the process is killed or interrupted.
    """
    try:
        with staging_folder(packed) as part:
            if part is None:
                return 0
            try:
                read = _pack(source, part, progress, skip_unreadable)
                publish(part, packed, (*ARRAYS, MANIFEST))
            except (OSError, InputError):
                shutil.rmtree(part, ignore_errors=True)
                raise
            return read
    except OSError as error:
        raise InputError(why_not_written(error, source.origin, packed)) from error


def _pack(source: Source, part: Path, progress: Progress | None, skip_unreadable: bool) -> int:
    identity = {
        "source": source.digest,
        "counts": {split: len(source.labels[split]) for split in SPLITS},
        "shape": list(source.shape()),
        "resize": source.resize,
    }
    journal = read_journal(part / JOURNAL, identity)
    if journal is None or not _long_enough(part, journal):
        for path in part.iterdir():
            path.unlink()
        journal = Journal(identity=identity)
    before = sum(journal.done.values())
    for split in SPLITS:
        _append(source, split, part, journal, progress)
    if journal.faults and (journal.fatal or not skip_unreadable):
        raise _refusal(source, journal)
    read = sum(journal.done.values()) - before
    _finish(source, part, journal)
    return read


def _append(
    source: Source, split: str, part: Path, journal: Journal, progress: Progress | None
) -> None:
    """Append the images of a split that the journal does not have yet."""
    places = [part / f"{split}-{kind}.npy" for kind in ("images", "labels")]
    for place in places:
        place.touch()
    with (
        # Plain writes: on a full disk a memory map would end the process by a signal.
        places[0].open("r+b") as images,
        places[1].open("r+b") as labels,
        closing(source.blocks(split, journal.done[split])) as blocks,
    ):
        for file, size in zip((images, labels), _sizes(journal), strict=True):
            file.truncate(_HEADER_BYTES + journal.kept[split] * size)
            file.seek(0, os.SEEK_END)
        noted = time.monotonic()
        for block in blocks:
            done = journal.done[split]
            images.write(block.images.data)
            labels.write(source.labels[split][done : done + len(block.kept)][block.kept].tobytes())
            journal.done[split] += len(block.kept)
            journal.kept[split] += len(block.images)
            journal.grey = journal.grey and block.grey
            journal.add(block.faults)
            if journal.fatal and journal.faults >= _ENOUGH_FAULTS:
                raise _refusal(source, journal)
            if progress:
                progress(sum(journal.done.values()), len(source))
            if time.monotonic() - noted >= _JOURNAL_SECONDS:
                _note(journal, part, images, labels)
                noted = time.monotonic()
        _note(journal, part, images, labels)


def _refusal(source: Source, journal: Journal) -> InputError:
    read = sum(journal.done.values())
    return refusal(source, journal.faults, read, journal.listed, journal.remedies)


def _note(journal: Journal, part: Path, *files: BinaryIO) -> None:
    """Write the journal, after the images that it counts are on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    journal.write(part / JOURNAL)


def _sizes(journal: Journal) -> tuple[int, int]:
    """Bytes of an image and of a label in the arrays."""
    return int(np.prod(journal.identity["shape"])), np.dtype(np.int64).itemsize


def _long_enough(part: Path, journal: Journal) -> bool:
    """Whether the files hold all images that the journal counts; one-channel arrays do not."""
    try:
        return all(
            not journal.done[split]
            or (part / f"{split}-{kind}.npy").stat().st_size
            >= _HEADER_BYTES + journal.kept[split] * size
            for split in SPLITS
            for kind, size in zip(("images", "labels"), _sizes(journal), strict=True)
        )
    except FileNotFoundError:
        return False


def _finish(source: Source, part: Path, journal: Journal) -> None:
    """Write the headers of the arrays and the manifest."""
    _check_classes(source, part, journal)
    height, width, channels = journal.identity["shape"]
    for split in SPLITS:
        count = journal.kept[split]
        _write_header(part / f"{split}-labels.npy", "<i8", (count,))
        path = part / f"{split}-images.npy"
        _write_header(path, "|u1", (count, height, width, channels))
        if journal.grey and channels > 1:
            _keep_one_channel(path)
    checksums = {name: npy_checksum(part / name) for name in ARRAYS}
    manifest = Manifest(
        classes=list(source.classes),
        counts=journal.kept,
        shape=[height, width, 1 if journal.grey else channels],
        crop_pad=max(1, height // 8) if source.crop_pad is None else source.crop_pad,
        flip=source.flip,
        skipped=journal.faults,
        unreadable=journal.listed,
        resize=source.resize,
        source=source.digest,
        checksums=checksums,
        digest=dataset_digest(source.classes, checksums.values()),
    )
    write_manifest(part, manifest)
    for name in (*ARRAYS, MANIFEST, ""):
        flush(part / name)


def _check_classes(source: Source, part: Path, journal: Journal) -> None:
    """Raises InputError for a class none of whose images could be used."""
    for split in SPLITS:
        kept = np.fromfile(part / f"{split}-labels.npy", dtype="<i8", offset=_HEADER_BYTES)
        before = np.bincount(source.labels[split], minlength=len(source.classes))
        after = np.bincount(kept, minlength=len(source.classes))
        if lost := [source.classes[k] for k in np.flatnonzero((before > 0) & (after == 0))]:
            raise InputError(
                f"no image of class {lost[0]!r} in the {split} split of {source.origin} can be "
                f"read ({', '.join(journal.listed[:_SHOWN])}): replace them or remove the class"
            )


def _write_header(path: Path, descr: str, shape: tuple[int, ...]) -> None:
    with path.open("r+b") as file:
        _header(file, descr, shape)


def _header(file: BinaryIO, descr: str, shape: tuple[int, ...]) -> None:
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == _HEADER_BYTES


def _keep_one_channel(path: Path, images_at_once: int = 4096) -> None:
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    narrow = path.with_suffix(".grey")
    with narrow.open("wb") as file:
        _header(file, "|u1", (*images.shape[:3], 1))
        for start in range(0, len(images), images_at_once):
            file.write(images[start : start + images_at_once, ..., :1].tobytes())
    narrow.replace(path)
