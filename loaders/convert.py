"""Any source of images into a folder that training maps: NAME.packed, or NAME.beton for FFCV."""

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastcat.errors import InputError, nearest
from fastcat.files import find_path

from .class_order import order_note, source_in_order
from .dataset import Dataset, Progress
from .formats.folder import folder_source
from .formats.npz import npz_source
from .formats.pack import SUFFIX, load_pack, read_manifest
from .formats.pack_writer import write_pack
from .formats.parquet import is_parquet, parquet_source
from .formats.source import Source, from_dataset
from .registry import dataset_names, is_folder, load_dataset
from .torchvision_sets import PREFIX, torchvision_source

_BETON = ".beton"
_SIDES = range(1, 4097)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written.

    dataset: it, mapped.
    read: images read by this process, not by a killed one before.
    seconds: that this took.
    skipped: number of images that could not be used.
    unreadable: the first thousand of these, and why.
    notes: sentences for the user about what else was left out.
    """

    dataset: Dataset
    read: int
    seconds: float
    skipped: int
    unreadable: Sequence[str]
    notes: tuple[str, ...]


def convert(
    source: str,
    out: Path,
    *,
    data_dir: Path,
    resize: int | None = None,
    skip_unreadable: bool = False,
    test_fraction: float | None = None,
    seed: int = 0,
    class_order: str = "text",
    progress: Progress | None = None,
) -> Conversion:
    """Write images to `out`, whole or not at all; after a kill the same call goes on.

    source: as of `open_source`.
    out: folder to write, NAME.packed or NAME.beton, which must not exist.
    data_dir: folder of downloads.
    resize: side in pixels of the square that all images become; None: they stay as they are.
    skip_unreadable: leave out images that cannot be used.
    test_fraction: share of each class that becomes the test split, for an .npz with one split.
    seed: of that draw.
    class_order: "text" leaves the classes as they are, "number" puts 2 before 10.
    progress: called with (done, total) images.
    Raises InputError for images that cannot be read, used or written.
    """
    out = Path(os.path.abspath(find_path(str(out))))
    _check_out(out)
    if resize is not None and resize not in _SIDES:
        raise InputError(
            f"--resize is {resize}, expected a side in pixels from 1 to {_SIDES[-1]}, such as 64"
        )
    opened = open_source(source, data_dir, resize, test_fraction, seed, progress)
    found = source_in_order(opened, class_order)
    begin = time.perf_counter()
    packed = out if out.suffix == SUFFIX else out.with_name(f".{out.name}{SUFFIX}")
    if packed != out:
        _remove_other(packed, found)
    read = write_pack(found, packed, progress, skip_unreadable)
    seconds = time.perf_counter() - begin
    manifest = read_manifest(packed)
    if (manifest.source, manifest.resize) != (found.digest, found.resize):
        raise InputError(f"{out} was written meanwhile, of another source: choose another name")
    dataset = load_pack(packed)
    if packed != out:
        # imported here: FFCV's files are wanted by few
        from .formats.beton_folder import write_betons

        try:
            write_betons(dataset, out, progress)
        except InputError:
            shutil.rmtree(packed)
            raise
        shutil.rmtree(packed)
    return Conversion(
        dataset=dataset,
        read=read,
        seconds=seconds,
        skipped=manifest.skipped,
        unreadable=manifest.unreadable,
        notes=(*found.notes, *filter(None, [order_note(found.classes)])),
    )


def open_source(
    text: str,
    data_dir: Path,
    resize: int | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Source:
    """The source that the user typed.

    text: name of a data set, torchvision:NAME, or path of an image folder, a folder of parquet
        files, an .npz file, or a .packed or .beton folder.
    The other parameters are those of `convert`.
    Raises InputError for anything else, and for a source that cannot be used.
    """
    path = None if text.startswith(PREFIX) or text in dataset_names() else find_path(text)
    if path is not None and path.suffix == ".npz" and path.is_file():
        return npz_source(path, resize, test_fraction, seed)
    if test_fraction is not None:
        raise InputError(
            f"{text!r} has a test split of its own: leave --test-fraction out, which is for .npz "
            "files with one split"
        )
    if text.startswith(PREFIX):
        return torchvision_source(text.removeprefix(PREFIX), data_dir, resize)
    if path is not None and path.is_dir() and path.suffix not in (SUFFIX, _BETON):
        folder = Path(os.path.abspath(path))
        make = parquet_source if is_parquet(folder) else folder_source
        return make(folder, resize)
    if path is None or is_folder(text):
        return from_dataset(load_dataset(text, data_dir, progress), text, resize)
    raise InputError(
        f"there is no {text!r} to convert: expected an image folder, a folder of parquet files, a "
        f".npz file, {PREFIX}NAME or a data set; {nearest(text, dataset_names())}"
    )


def _check_out(out: Path) -> None:
    if out.suffix not in (SUFFIX, _BETON) or not out.stem:
        raise InputError(
            f"{out} ends in neither {SUFFIX} nor {_BETON}: type {out.name}{SUFFIX}, or "
            f"{out.name}{_BETON} for FFCV"
        )
    if os.path.lexists(out):
        raise InputError(
            f"{out} exists already: choose another name, or type rm -r {shlex.quote(str(out))}"
        )
    if not out.parent.is_dir():
        raise InputError(
            f"{out.parent} is not a folder: type mkdir -p {shlex.quote(str(out.parent))} first"
        )


def _remove_other(packed: Path, source: Source) -> None:
    """Remove a hidden pack that a killed conversion left, unless it is of this source."""
    if packed.exists():
        try:
            manifest = read_manifest(packed)
            if (manifest.source, manifest.resize) == (source.digest, source.resize):
                return
        except InputError:
            pass
        shutil.rmtree(packed)
