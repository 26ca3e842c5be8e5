"""60 000 colour images of 32 x 32 pixels in 10 classes (170 MB download).

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from pathlib import Path

from ..dataset import Dataset, Progress
from ._cifar import read_cifar


def cifar10(data_dir: Path, progress: Progress | None = None) -> Dataset:
    from torchvision.datasets import CIFAR10

    return read_cifar("cifar10", CIFAR10, data_dir, progress)
