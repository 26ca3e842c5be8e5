"""Data sets by name: the one place where the command line and the trainer ask for one."""

import os
from collections.abc import Callable
from pathlib import Path

from fastcat.errors import InputError, nearest

from .cifar import load_cifar
from .dataset import Dataset
from .digits import load_digits
from .folder import load_folder
from .pack import packed_path

DATASETS = {
    "cifar10": "60 000 colour images of 32 x 32 pixels in 10 classes (170 MB download)",
    "cifar100": "60 000 colour images of 32 x 32 pixels in 100 classes (169 MB download)",
    "digits": "1797 grey images of 8 x 8 pixels in 10 classes (needs scikit-learn, no download)",
}


def load_dataset(
    name: str, data_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read a data set into memory, or map it.

    name: a key of DATASETS, or the path of an image folder (train/<class>/*, test/<class>/*).
    data_dir: where archives are looked for and downloaded to; folders do not use it.
    progress(done, total): called, in bytes or images, while something is downloaded or packed.
    Raises InputError for an unknown name and for data that cannot be used.
    """
    if name == "digits":
        return load_digits()
    if name in DATASETS:
        return load_cifar(name, data_dir, progress)
    if is_folder(name):
        return load_folder(Path(name), progress)
    raise InputError(
        f"there is no data set {name!r} (a folder of images is given as a path, such as "
        f"./my-images): {nearest(name, DATASETS)}"
    )


def is_folder(name: str) -> bool:
    """Whether a name means an image folder (there now or not): known names never do."""
    if not name or name in DATASETS:
        return False
    if os.sep in name or (os.altsep and os.altsep in name):
        return True
    return Path(name).is_dir() or packed_path(Path(name)).is_dir()
