"""Any folder of images, train/<class>/* and test/<class>/*, decoded once and then memory-mapped."""

import os
from collections.abc import Callable
from pathlib import Path

from fastcat.errors import InputError

from .dataset import Dataset
from .listing import list_folder
from .lock import locked
from .pack import MANIFEST, packed_path, read_pack, remove_leftovers, write_pack


def load_folder(folder: Path, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Read an image folder, from the packed copy beside it where there is one already.

    folder: its path; where only the packed copy is left, the path the folder had.
    progress(done, total): called with numbers of images while the folder is packed.
    An edit that leaves a file's name and size alone is not noticed in a packed folder.
    Raises InputError for a folder, an image or a packed copy that cannot be used.
    """
    # Not resolved: a link to a folder is packed beside the link, where one may write.
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    if folder.suffix == ".packed" and (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is a packed copy: give {folder.with_suffix('')} instead")
    packed = packed_path(folder)
    listing = None if packed.exists() and not folder.exists() else list_folder(folder)
    if listing and not packed.exists():
        with locked(folder) as alone:
            if alone:
                remove_leftovers(packed)
            # Another process may have packed while this one waited.
            if not packed.exists():
                write_pack(listing, packed, progress)
    classes, train, test, digest = read_pack(packed, listing)
    return Dataset(
        name=folder.name,
        classes=classes,
        train=train,
        test=test,
        crop_pad=max(1, train.images.shape[1] // 8),
        flip=True,
        digest=digest,
    )
