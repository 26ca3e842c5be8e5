"""60 000 colour images of 32 x 32 pixels in 100 classes (169 MB download).

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from pathlib import Path

from ..dataset import Dataset, Progress
from ._cifar import read_cifar


def cifar100(data_dir: Path, progress: Progress | None = None) -> Dataset:
    from torchvision.datasets import CIFAR100

    return read_cifar("cifar100", CIFAR100, data_dir, progress)
