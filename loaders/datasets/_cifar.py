"""CIFAR-10 and CIFAR-100, from the authors' archives, of which torchvision checks every file."""

from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from ..dataset import Dataset, Progress, Split
from ..formats.archive import data_folder, fetch
from ..formats.digest import array_checksum, dataset_digest


def read_cifar(name: str, source: Any, data_dir: Path, progress: Progress | None) -> Dataset:
    """50 000 training and 10 000 test images, uint8 [N, 32, 32, 3].

    source: torchvision's class, which knows the archive's address, its MD5 and its files'.
    data_dir: folder of the archive, where it is downloaded and unpacked unless it is there.
    progress: called with (done, total) bytes of the download.
    Raises InputError where the archive cannot be downloaded, is damaged or cannot be unpacked.
    """
    from torchvision.datasets.utils import extract_archive

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
    """Class names, training and test split; None: unpacked files are missing or damaged."""
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
