"""1797 grey images of 8 x 8 pixels in 10 classes (needs scikit-learn, no download).

Handwritten digits; a fifth of each class, always the same, is the test split.
"""

from pathlib import Path

import numpy as np

from fastcat.errors import InputError

from ..dataset import Dataset, Progress, Split
from ..formats.digest import array_checksum, dataset_digest
from ..labels import choose_test

_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_BRIGHTEST = 16


def digits(data_dir: Path, progress: Progress | None = None) -> Dataset:
    """Images uint8 [N, 8, 8, 1], which scikit-learn brings along.

    Raises InputError where scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise InputError(
            "the data set 'digits' needs scikit-learn, which is not installed: "
            "type pip install scikit-learn"
        ) from error
    bunch = datasets.load_digits()
    images = np.rint(bunch.images * 255 / _BRIGHTEST).astype(np.uint8)[..., np.newaxis]
    labels = bunch.target.astype(np.int64)
    is_test = choose_test(labels, _TEST_SHARE, _SPLIT_SEED)
    train, test = (
        Split(images=images[chosen], labels=labels[chosen]) for chosen in (~is_test, is_test)
    )
    classes = tuple(str(digit) for digit in range(10))
    arrays = (train.images, train.labels, test.images, test.labels)
    return Dataset(
        name="digits",
        classes=classes,
        train=train,
        test=test,
        crop_pad=0,  # the digits fill their frames: a shift would cut strokes off
        flip=False,
        digest=dataset_digest(classes, map(array_checksum, arrays)),
    )
