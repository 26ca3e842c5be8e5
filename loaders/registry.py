"""Data sets and loaders by name, and data sets by path.

What reads them is imported when it is needed: names are listed without torch.
"""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fastcat.errors import InputError, nearest
from fastcat.files import find_path
from fastcat.registry import load, names

if TYPE_CHECKING:
    from .dataset import Dataset, Progress

DATASETS = "fastcat.loaders.datasets"
BACKENDS = "fastcat.loaders.backends"


def dataset_names() -> tuple[str, ...]:
    return names(DATASETS)


def loader_names() -> tuple[str, ...]:
    return names(BACKENDS)


def load_dataset(name: str, data_dir: Path, progress: "Progress | None" = None) -> "Dataset":
    """A data set in memory, or mapped.

    name: one of `dataset_names`, or a path: of an image folder (train/<class>/*, test/<class>/*),
        of a .packed or .beton folder that `fastcat data convert` wrote, or of an uncompressed .npz.
    data_dir: folder where downloads are looked for and put; paths do not use it.
    progress: called with (done, total) bytes, files or images of a download or a packing.
    Raises InputError for an unknown name and for data that cannot be used.
    """
    if name in dataset_names():
        return load(DATASETS, name, "data set")(data_dir, progress)
    if name.startswith("torchvision:"):
        raise _convert_first(name, f"{name.removeprefix('torchvision:').lower()}.packed")
    if not is_folder(name):
        raise InputError(
            f"there is no data set {name!r} (a folder of images is given as a path, such as "
            f"./my-images): {nearest(name, dataset_names())}"
        )
    return _load_path(name, progress)


def is_folder(name: str) -> bool:
    """Whether a name means files (there now or not), not a data set: known names never do."""
    if not name or name in dataset_names():
        return False
    if os.sep in name or (os.altsep and os.altsep in name):
        return True
    is_array = name.endswith(".npz") and os.path.isfile(name)
    return is_array or os.path.isdir(name) or os.path.isdir(name + ".packed")


def _load_path(name: str, progress: "Progress | None") -> "Dataset":
    from .formats.beton_folder import is_beton_set, load_betons
    from .formats.folder import load_folder
    from .formats.npz import load_npz
    from .formats.pack import is_pack, load_pack
    from .formats.parquet import is_parquet

    path = find_path(name)
    if is_pack(path):
        return load_pack(path)
    if is_beton_set(path):
        return load_betons(path)
    if path.suffix == ".npz" and not path.is_dir():
        return load_npz(path)
    if is_parquet(path):
        raise _convert_first(name, f"{path}.packed")
    return load_folder(path, progress)


def _convert_first(source: str, out: str) -> InputError:
    return InputError(
        f"{source} has to be converted before it is used: type fastcat data convert "
        f"{shlex.quote(source)} {shlex.quote(out)} and give {out}"
    )
