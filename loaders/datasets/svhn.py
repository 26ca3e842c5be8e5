"""99 289 colour images of 32 x 32 pixels in 10 classes (needs scipy, 246 MB download).

Street View House Numbers, digits cut out of photographs, from the authors' files.
Source: Netzer et al., "Reading digits in natural images with unsupervised feature learning", 2011.
Neither cropped nor mirrored at random, as MART's and other papers' code trains on it: a mirrored
digit is another one, and a shift brings in the house number's neighbours.
"""

from pathlib import Path

import numpy as np

from fastcat.errors import InputError

from ..dataset import Dataset, Progress, Split
from ..formats.archive import data_folder, fetch
from ..formats.digest import array_checksum, dataset_digest


def svhn(data_dir: Path, progress: Progress | None = None) -> Dataset:
    """73 257 training and 26 032 test images, uint8 [N, 32, 32, 3].

    data_dir: folder of train_32x32.mat and test_32x32.mat, downloaded unless they are there.
    progress: called with (done, total) bytes of a download.
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
