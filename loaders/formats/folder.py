"""Folders of images, train/<class>/* and test/<class>/*: packed once, then memory-mapped."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ..dataset import Dataset, Progress
from .decode import read_image
from .folder_listing import Listing, list_folder
from .image_source import ImageFile, ImageFileSource
from .pack import load_pack, packed_path, read_manifest, refused
from .pack_writer import write_pack


@dataclass(frozen=True, kw_only=True)
class FolderSource(ImageFileSource):
    listing: Listing

    def image_files(self, split: str, start: int) -> Iterator[ImageFile]:
        for name in islice(self.listing.names[split], start, None):
            yield name, partial(read_image, self.listing.root / name)


def folder_source(folder: Path, resize: int | None = None) -> FolderSource:
    """The source of an image folder. Raises InputError as `list_folder` does."""
    listing = list_folder(folder)
    return FolderSource(
        name=folder.name,
        origin=str(folder),
        classes=listing.classes,
        labels=listing.labels,
        digest=listing.digest,
        resize=resize,
        listing=listing,
    )


def load_folder(folder: Path, progress: Progress | None = None) -> Dataset:
    """An image folder, by the packed copy beside it, which is written where there is none.

    An edit that keeps a file's name and size is not noticed once the folder is packed.
    folder: its path; it may be gone where the packed copy is there.
    progress: called with (done, total) images while the folder is packed.
    Raises InputError for a folder, an image or a packed copy that cannot be used.
    """
    # links stay: a linked folder is packed beside the link, where one may write
    folder = Path(os.path.abspath(os.path.expanduser(folder)))
    packed = packed_path(folder)
    if folder.exists() or not packed.exists():
        source = folder_source(folder)
        if not packed.exists():
            write_pack(source, packed, progress)
        manifest = read_manifest(packed)
        if manifest.source != source.digest:
            if sorted(manifest.classes) == sorted(source.classes) != manifest.classes:
                raise refused(packed, f"it has the classes of {folder} in another order")
            before = sum(manifest.counts.values()) + manifest.skipped
            raise refused(
                packed,
                f"the files in {folder} changed after packing (then {before}, now {len(source)}; "
                "names or sizes differ)",
            )
    return load_pack(packed)
