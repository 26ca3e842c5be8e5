"""Labels and names of data sets of one's own: what the items yield, and by name where they meet."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import datasets
from torchvision.datasets import ImageFolder

from fastcat.errors import InputError
from fastcat.loaders.item_labels import known_labels
from fastcat.loaders.items import from_items
from tests.harness.image_folders import make_folder, noise

NAMES = ("ant", "bee", "cow", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "all", train=3, test=2, classes=NAMES)


@pytest.fixture
def fewer(tmp_path: Path) -> Path:
    """Without the first class, so that numbers begin at another one."""
    return make_folder(tmp_path / "fewer", train=3, test=2, classes=NAMES[1:])


class Wrapped(Dataset[Any]):
    """Another label, and every attribute of the data set inside."""

    def __init__(self, inside: Any, change: Callable[[int], Any]) -> None:
        self.inside = inside
        self.change = change

    def __len__(self) -> int:
        return len(self.inside)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        image, label = self.inside[row]
        return image, self.change(label)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inside"], name)


class Later(ImageFolder):
    """A subclass that yields another class."""

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        image, label = super().__getitem__(row)
        return image, (label + 1) % 4


class Backwards(ImageFolder):
    """Numbers from the last name on, and `classes` in that order or not."""

    in_order = True

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        names, _ = super().find_classes(directory)
        turned = names[::-1]
        return turned if self.in_order else names, {name: k for k, name in enumerate(turned)}


class Mislisted(Backwards):
    in_order = False


def relabelled(folder: Path) -> ImageFolder:
    items = ImageFolder(folder)
    items.targets = [0] * len(items)
    return items


def resampled(folder: Path) -> ImageFolder:
    items = ImageFolder(folder)
    items.samples = [(path, 3 - label) for path, label in items.samples]
    return items


# what is yielded, and whether the names are those of it
MAKERS: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "plain": (ImageFolder, True),
    "target_transform": (lambda p: ImageFolder(p, target_transform=lambda y: y // 2), False),
    "a target_transform that changes nothing": (
        lambda p: ImageFolder(p, target_transform=np.uint8),
        True,
    ),
    "wrapper": (lambda p: Wrapped(ImageFolder(p), lambda y: 3 - y), False),
    "wrapper that changes nothing": (lambda p: Wrapped(ImageFolder(p), int), True),
    "subclass": (Later, False),
    "subclass that numbers backwards": (Backwards, True),
    "subclass whose classes are in another order": (Mislisted, True),
    "targets overwritten": (relabelled, False),
    "samples overwritten": (resampled, False),
    "Subset": (lambda p: Subset(ImageFolder(p), range(7, -1, -1)), True),
    "Subset of a wrapper": (
        lambda p: Subset(Wrapped(ImageFolder(p), lambda y: 3 - y), [7, 1, 5, 3]),
        False,
    ),
    "ConcatDataset": (lambda p: ConcatDataset([ImageFolder(p), ImageFolder(p)]), True),
    "ConcatDataset of a Subset": (
        lambda p: ConcatDataset([Subset(ImageFolder(p), [7, 0]), ImageFolder(p)]),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "has_names"), MAKERS.values(), ids=MAKERS)
def test_labels_are_those_that_items_yield(
    make: Callable[[Path], Any], has_names: bool, root: Path
) -> None:
    items = make(root / "train")
    dataset = from_items(items, make(root / "test"))
    assert dataset.train.labels.dtype == np.int64
    assert dataset.train.labels.tolist() == [label for _, label in items]
    assert (set(dataset.classes) == set(NAMES)) is has_names


@pytest.mark.parametrize(("make", "has_names"), MAKERS.values(), ids=MAKERS)
def test_names_are_those_of_the_folders(
    make: Callable[[Path], Any], has_names: bool, root: Path
) -> None:
    """By the very images: which folder each lies in."""
    if not has_names:
        return
    folder_of = {
        np.asarray(Image.open(path)).tobytes(): path.parent.name
        for path in (root / "train").rglob("*.png")
    }
    train = from_items(make(root / "train"), make(root / "test")).train
    dataset = from_items(make(root / "train"), make(root / "test"))
    for image, label in zip(train.images[:], dataset.train.labels, strict=True):
        assert dataset.classes[label] == folder_of[image.tobytes()]


def named(split: Any, classes: Sequence[str]) -> list[str]:
    return [classes[label] for label in split.labels]


@pytest.mark.parametrize(
    "test",
    [
        lambda folder: ImageFolder(folder),
        lambda folder: Subset(ImageFolder(folder), range(6)),
        lambda folder: ConcatDataset([ImageFolder(folder)]),
        Backwards,
        Mislisted,
    ],
)
def test_a_test_split_that_lacks_a_class_is_judged_by_name(
    test: Callable[[Path], Any], root: Path, fewer: Path
) -> None:
    dataset = from_items(ImageFolder(root / "train"), test(fewer / "test"))
    assert dataset.classes == NAMES
    assert sorted(named(dataset.test, dataset.classes)) == sorted([*NAMES[1:]] * 2)
    again = from_items(ImageFolder(root / "train"), test(fewer / "test"), classes="wxyz")
    assert np.array_equal(again.test.labels, dataset.test.labels)


def test_parts_of_one_data_set_are_put_together_by_name(root: Path, fewer: Path) -> None:
    both = ConcatDataset([ImageFolder(root / "train"), ImageFolder(fewer / "train")])
    dataset = from_items(both, ImageFolder(root / "test"))
    kinds = [*np.repeat(NAMES, 3), *np.repeat(NAMES[1:], 3)]
    assert named(dataset.train, dataset.classes) == kinds
    # the labels that items yield are still known for what they are
    assert len(dataset.train.images[:]) == len(kinds)


def test_names_that_training_does_not_have_are_refused(root: Path, fewer: Path) -> None:
    with pytest.raises(InputError, match=r"the test data set has 4 .*'ant' is none of the 3"):
        from_items(ImageFolder(fewer / "train"), ImageFolder(root / "test"))
    with pytest.raises(InputError, match=r"part 1 of the train data set.*'ant' is none of the 3"):
        from_items(
            ConcatDataset([ImageFolder(fewer / "train"), ImageFolder(root / "train")]),
            ImageFolder(root / "test"),
        )
    unnamed = [(noise(k), k % 4) for k in range(8)]
    with pytest.raises(InputError, match=r"the test data set has 3 classes.*none of the 4"):
        from_items(unnamed, ImageFolder(fewer / "test"))
    dataset = from_items(unnamed, ImageFolder(root / "test"), classes=NAMES)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_set_without_names_goes_by_number(root: Path) -> None:
    dataset = from_items(ImageFolder(root / "train"), [(noise(k), k) for k in range(4)])
    assert (dataset.classes, dataset.test.labels.tolist()) == (NAMES, [0, 1, 2, 3])


class Counted(ImageFolder):
    reads = 0

    def loader(self, path: str) -> Any:  # type: ignore[override]
        Counted.reads += 1
        return Image.open(path).convert("RGB")


def test_images_are_not_read_for_labels_that_are_kept_apart(root: Path) -> None:
    """Of ImageNet that would be a whole epoch before the first step."""

    def counted(part: str) -> ImageFolder:
        items = ImageFolder(root / part)
        items.loader = Counted.loader.__get__(items)
        return items

    large = Subset(ConcatDataset([counted("train")] * 40), range(1, 480))
    assert known_labels(large) is not None
    from_items(large, counted("test"))
    assert Counted.reads < 40
    assert known_labels(Later(root / "train")) is None
    assert known_labels(ImageFolder(root / "train", target_transform=int)) is None


@pytest.mark.parametrize(
    ("kind", "kept"), [("CIFAR10", "targets"), ("MNIST", "targets"), ("SVHN", "labels")]
)
def test_torchvision_yields_what_is_taken_for_known(kind: str, kept: str) -> None:
    """Catches a version of torchvision whose methods take labels from elsewhere."""
    import torch

    images = np.stack([noise(k, 32, 32) for k in range(5)])
    items = object.__new__(getattr(datasets, kind))
    items.transform = items.target_transform = None
    items.data = {
        "CIFAR10": images,
        "MNIST": torch.from_numpy(images[..., 0]),
        "SVHN": images.transpose(0, 3, 1, 2),
    }[kind]
    setattr(items, kept, torch.tensor([3, 1, 4, 1, 5]) if kind == "MNIST" else [3, 1, 4, 1, 5])
    known = known_labels(items)
    assert known is not None
    assert known.tolist() == [items[row][1] for row in range(5)] == [3, 1, 4, 1, 5]
