"""CIFAR-10 and CIFAR-100 from the authors' archives, read by torchvision, which checks every file.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from .dataset import Dataset, Split
from .digest import array_checksum, dataset_digest
from .download import data_folder, fetch


def load_cifar(
    name: str, data_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read "cifar10" or "cifar100", uint8 [N, 32, 32, 3], downloading it where it is not there yet.

    data_dir: where the archive is or will be, and where it is unpacked.
    progress(done, total): called with numbers of bytes while the archive is downloaded.
    Raises InputError where the archive cannot be downloaded, is damaged or cannot be unpacked.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import extract_archive

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    with data_folder(name, data_dir) as root:
        splits = _read(source, root)
        if splits is None:
            archive = root / source.filename
            fetch(source.url, archive, source.tgz_md5, progress)
            extract_archive(archive, root)
            splits = _read(source, root)
    if splits is None:
        raise InputError(
            f"{root / source.base_folder} is damaged: remove it and run again to unpack it anew"
        )
    classes, train, test = splits
    arrays = (train.images, train.labels, test.images, test.labels)
    return Dataset(
        name=name,
        classes=classes,
        train=train,
        test=test,
        crop_pad=4,
        flip=True,
        digest=dataset_digest(classes, map(array_checksum, arrays)),
    )


def _read(source: Any, root: Path) -> tuple[tuple[str, ...], Split, Split] | None:
    """The classes, train and test; None where the unpacked files are missing or damaged."""
    try:
        train, test = (source(root, train=train) for train in (True, False))
    except RuntimeError:
        return None
    splits = [
        Split(
            images=np.ascontiguousarray(split.data),
            labels=np.asarray(split.targets, dtype=np.int64),
        )
        for split in (train, test)
    ]
    return tuple(train.classes), splits[0], splits[1]
