"""Data sets by name or path: the one place where the command line and the trainer ask for one."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

from fastcat.errors import InputError, nearest
from fastcat.files import find_path

from . import tiny_imagenet
from .beton_set import is_beton_set, load_betons
from .cifar import load_cifar
from .dataset import Dataset
from .digits import load_digits
from .folder import load_folder
from .npz_source import load_npz
from .pack import SUFFIX, is_pack, load_pack
from .parquet import is_parquet
from .svhn import load_svhn
from .torchvision_source import PREFIX

Progress = Callable[[int, int], None] | None

DATASETS = {
    "cifar10": "60 000 colour images of 32 x 32 pixels in 10 classes (170 MB download)",
    "cifar100": "60 000 colour images of 32 x 32 pixels in 100 classes (169 MB download)",
    "digits": "1797 grey images of 8 x 8 pixels in 10 classes (needs scikit-learn, no download)",
    "svhn": "99 289 colour images of 32 x 32 pixels in 10 classes (needs scipy, 246 MB download)",
    tiny_imagenet.NAME: "110 000 images of 64 x 64 pixels in 200 classes (248 MB download)",
}


def load_dataset(name: str, data_dir: Path, progress: Progress = None) -> Dataset:
    """Read a data set into memory, or map it.

    name: a key of DATASETS, or a path: of an image folder (train/<class>/*, test/<class>/*), of a
    .packed or .beton folder that `fastcat data convert` wrote, or of an uncompressed .npz file.
    data_dir: where archives are looked for and downloaded to; paths do not use it.
    progress(done, total): called, in bytes or images, while something is downloaded or packed.
    Raises InputError for an unknown name and for data that cannot be used.
    """
    if name == "digits":
        return load_digits()
    if name == "svhn":
        return load_svhn(data_dir, progress)
    if name == tiny_imagenet.NAME:
        return tiny_imagenet.load_tiny_imagenet(data_dir, progress)
    if name in DATASETS:
        return load_cifar(name, data_dir, progress)
    if name.startswith(PREFIX):
        raise _convert_first(name, f"{name.removeprefix(PREFIX).lower()}{SUFFIX}")
    if not is_folder(name):
        raise InputError(
            f"there is no data set {name!r} (a folder of images is given as a path, such as "
            f"./my-images): {nearest(name, DATASETS)}"
        )
    path = find_path(name)
    if is_pack(path):
        return load_pack(path)
    if is_beton_set(path):
        return load_betons(path)
    if path.suffix == ".npz" and not path.is_dir():
        return load_npz(path)
    if is_parquet(path):
        raise _convert_first(name, f"{path}{SUFFIX}")
    return load_folder(path, progress)


def is_folder(name: str) -> bool:
    """Whether a name means files (there now or not), not a data set: known names never do."""
    if not name or name in DATASETS:
        return False
    if os.sep in name or (os.altsep and os.altsep in name):
        return True
    is_array = name.endswith(".npz") and os.path.isfile(name)
    return is_array or os.path.isdir(name) or os.path.isdir(name + SUFFIX)


def _convert_first(source: str, out: str) -> InputError:
    return InputError(
        f"{source} has to be converted before it is used: type fastcat data convert "
        f"{shlex.quote(source)} {shlex.quote(out)} and give {out}"
    )
