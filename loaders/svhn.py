"""Street View House Numbers, cropped digits of 32 x 32 pixels, from the authors' files.

Source: Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.
Neither cropped nor mirrored at random, as MART's and other papers' code trains on it: a mirrored
digit is another one, and a shift brings in the house number's neighbours.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastcat.errors import InputError

from .dataset import Dataset, Split
from .digest import array_checksum, dataset_digest
from .download import data_folder, fetch


def load_svhn(data_dir: Path, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """73 257 training and 26 032 test images, uint8 [N, 32, 32, 3], downloaded where not there yet.

    data_dir: where train_32x32.mat and test_32x32.mat are or will be.
    progress(done, total): called with numbers of bytes during a download.
    Raises InputError where a file cannot be downloaded or is damaged, or scipy is missing.
    """
    try:
        import scipy.io  # noqa: F401  torchvision reads the files with it
    except ModuleNotFoundError as error:
        raise InputError(
            "the data set 'svhn' needs scipy, which is not installed: type pip install scipy"
        ) from error
    from torchvision.datasets import SVHN

    splits = []
    with data_folder("svhn", data_dir) as root:
        for which in ("train", "test"):
            url, name, md5 = SVHN.split_list[which]
            fetch(url, root / name, md5, progress)
            found = SVHN(root, split=which)
            images = np.ascontiguousarray(found.data.transpose(0, 2, 3, 1))
            splits.append(Split(images=images, labels=found.labels.astype(np.int64)))
    train, test = splits
    classes = tuple(str(digit) for digit in range(10))
    arrays = (train.images, train.labels, test.images, test.labels)
    return Dataset(
        name="svhn",
        classes=classes,
        train=train,
        test=test,
        crop_pad=0,
        flip=False,
        digest=dataset_digest(classes, map(array_checksum, arrays)),
    )
