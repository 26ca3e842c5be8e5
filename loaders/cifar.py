"""CIFAR-10 and CIFAR-100 from the authors' archives, read by torchvision, which checks every file.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from fastcat.errors import InputError

from .dataset import Dataset, Split
from .digest import array_checksum, dataset_digest
from .lock import locked

_TIMEOUT_S = 60
_CHUNK_BYTES = 1 << 18


def load_cifar(
    name: str, data_dir: Path, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read "cifar10" or "cifar100", uint8 [N, 32, 32, 3], downloading it where it is not there yet.

    data_dir: where the archive is or will be, and where it is unpacked.
    progress(done, total): called with numbers of bytes while the archive is downloaded.
    Raises InputError where the archive cannot be downloaded, is damaged or cannot be unpacked.
    """
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    root = Path(os.path.abspath(os.path.expanduser(data_dir)))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root):
            splits = _read(source, root)
            if splits is None:
                _unpack(source, root, progress)
                splits = _read(source, root)
    except OSError as error:
        raise InputError(
            f"{name} could not be read or unpacked in {root} ({error}): "
            "give a data folder where you may write and that has room"
        ) from error
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


def _unpack(source: Any, root: Path, progress: Callable[[int, int], None] | None) -> None:
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = root / source.filename
    if not archive.exists():
        _download(source.url, archive, progress)
    if not check_integrity(archive, source.tgz_md5):
        raise InputError(
            f"the archive {archive} is damaged (its MD5 differs): remove it and run again to "
            f"download it, or put a whole {source.filename} into {root}"
        )
    extract_archive(archive, root)


def _download(url: str, archive: Path, progress: Callable[[int, int], None] | None) -> None:
    part = archive.with_name(f".{archive.name}.part")
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,
            part.open("wb") as file,
        ):
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
                if progress:
                    progress(file.tell(), total)
        size = part.stat().st_size
        if total and size != total:
            raise OSError(f"only {size} of {total} bytes arrived")
        part.replace(archive)
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{archive.name} could not be downloaded from {url} ({error}): "
            f"fetch that file elsewhere and put it into {archive.parent}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
