"""Images a second of every loader, beside FFCV's own pipeline and torchvision's, alternately.

Each brings the same training images as float32 batches in [0, 1] on the device, zero-padded by 4,
cropped and flipped. A turn is an epoch; the first of each, in which FFCV compiles, is not timed.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcat.benchmarks.contestants import SIDE
from fastcat.benchmarks.measure import synchronize
from fastcat.loaders.augmentation import Augmentation
from fastcat.loaders.backends.ffcv import has_ffcv
from fastcat.loaders.choose import make_loader
from fastcat.loaders.dataset import Dataset
from fastcat.loaders.loader import Loader, Sampling
from fastcat.loaders.registry import load_dataset, loader_names

PAD = 4
WORKERS = 2
# twice what a training step on a fast GPU consumes, see docs/performance.md
NEEDED = 11_000

COLUMNS = (
    ("loader", "{contestant}"),
    ("images/s", "{images_per_second:.0f}"),
    ("low..high", "{low:.0f}..{high:.0f}"),
    ("of FFCV's own", "{of_ffcv:.0%}"),
    (f"of {NEEDED}", "{of_needed:.1f}x"),
)

Epoch = Callable[[], Iterator[Tensor]]


def measure_loaders(
    data: Path | None, batch: int, repetitions: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each loader. data: an image folder; None: random images, also written as JPEGs."""
    with tempfile.TemporaryDirectory() as place:
        folder = data or Path(place) / "images"
        if data is None:
            _write_random(folder)
        # packed in the temporary place, so that nothing is left beside the user's images
        link = Path(place) / "linked"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        dataset = load_dataset(str(link), Path(place))
        epochs = contestants(dataset, link, batch, device, Path(place))
        rates: dict[str, list[float]] = {name: [] for name in epochs}
        for turn in range(repetitions + 1):
            for name, epoch in epochs.items():
                rate = _images_per_second(epoch, device)
                if turn:
                    rates[name].append(rate)
    own = median(rates["FFCV's own"]) if "FFCV's own" in rates else None
    return [
        {
            "contestant": name,
            "batch_size": batch,
            "images": len(dataset.train),
            "shape": list(dataset.image_shape),
            "images_per_second": median(values),
            "low": min(values),
            "high": max(values),
            "of_ffcv": median(values) / own if own else None,
            "of_needed": median(values) / NEEDED,
        }
        for name, values in rates.items()
    ]


def contestants(
    dataset: Dataset, folder: Path, batch: int, device: torch.device, place: Path
) -> dict[str, Epoch]:
    """By name, a function that makes an epoch of batches on the device."""
    settings = Sampling(
        index=torch.arange(len(dataset.train)),
        batch_size=batch,
        shuffle=True,
        augmentation=Augmentation(crop_pad=PAD, flip=True),
    )
    found: dict[str, Epoch] = {}
    for name in loader_names():
        if name != "ffcv" or has_ffcv():
            found[name] = _ours(make_loader(name, dataset, "train", settings, device, place))
    if has_ffcv():
        (beton,) = place.glob("*.beton/train.beton")
        found["FFCV's own"] = _ffcv_pipeline(beton, batch, device)
    found["torchvision"] = _torchvision_pipeline(folder / "train", batch, device)
    return found


def _ours(loader: Loader) -> Epoch:
    return lambda: (batch.x for batch in loader)


def _ffcv_pipeline(beton: Path, batch: int, device: torch.device) -> Epoch:
    """As FFCV's CIFAR example has it, on all cores; scaled where it arrives."""
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    threads = torch.get_num_threads()
    augmented = [
        SimpleRGBImageDecoder(),
        RandomHorizontalFlip(),
        RandomTranslate(padding=PAD),
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        str(beton),
        batch_size=batch,
        num_workers=threads,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": augmented},
    )

    def epoch() -> Iterator[Tensor]:
        for x, _ in loader:
            yield x.to(device, non_blocking=True).float().div_(255)

    return epoch


def _torchvision_pipeline(folder: Path, batch: int, device: torch.device) -> Epoch:
    from torchvision import datasets, transforms

    side = Image.open(next(folder.rglob("*.*"))).size[::-1]
    transform = transforms.Compose(
        [
            transforms.RandomCrop(side, padding=PAD),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(folder, transform),
        batch_size=batch,
        shuffle=True,
        num_workers=WORKERS,
        pin_memory=device.type == "cuda",
    )

    def epoch() -> Iterator[Tensor]:
        for x, _ in loader:
            yield x.to(device, non_blocking=True)

    return epoch


def _images_per_second(epoch: Epoch, device: torch.device) -> float:
    begin, images = time.perf_counter(), 0
    for x in epoch():
        images += len(x)
    synchronize(device)
    return images / (time.perf_counter() - begin)


def _write_random(folder: Path, images: int = 10_000) -> None:
    """JPEGs of smooth random colours: noise would take longer to decode than photographs."""
    random = np.random.default_rng(0)
    for split, count in (("train", images), ("test", 20)):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
        for number in range(count):
            rough = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            image = rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(folder / split / "ab"[number % 2] / f"{number}.jpg")
