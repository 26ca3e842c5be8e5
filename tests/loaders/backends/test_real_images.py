"""All of CIFAR-10 (JPEG) and a Tiny ImageNet in its own layout, from files to the last batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcat.loaders.augmentation import Augmentation
from fastcat.loaders.choose import make_loader
from fastcat.loaders.convert import convert
from fastcat.loaders.loader import Sampling
from fastcat.loaders.registry import load_dataset, loader_names
from tests.harness.image_folders import noise
from tests.harness.random_images import CPU, same

IMAGES = os.environ.get("FASTCAT_CIFAR10_FOLDER")


@pytest.mark.slow
@pytest.mark.skipif(
    IMAGES is None, reason="set FASTCAT_CIFAR10_FOLDER to an unpacked CIFAR-10 image folder"
)
def test_an_epoch_of_cifar10_is_the_same_through_every_loader(tmp_path: Path) -> None:
    pytest.importorskip("ffcv", reason="FFCV is not installed")
    folder = Path(str(IMAGES))
    convert(str(folder), tmp_path / "c.packed", data_dir=tmp_path)
    convert(str(tmp_path / "c.packed"), tmp_path / "c.beton", data_dir=tmp_path)
    packed, betons = (load_dataset(str(tmp_path / f"c.{s}"), tmp_path) for s in ("packed", "beton"))
    assert packed.digest == betons.digest
    assert (len(packed.train), len(packed.test)) == (50_000, 10_000)
    # pixels as decoded from the files themselves, and the label is the folder's
    for place in range(0, 50_000, 4999):
        label = packed.train.labels[place]
        files = sorted((folder / "train" / packed.classes[label]).iterdir())
        with Image.open(files[place - int((packed.train.labels < label).sum())]) as image:
            assert np.array_equal(packed.train.images[place], np.asarray(image))
    sampling = Sampling(
        index=torch.arange(50_000),
        batch_size=500,
        shuffle=True,
        augmentation=Augmentation(crop_pad=4, flip=True),
    )
    loaders = {
        name: make_loader(
            name, betons if name == "ffcv" else packed, "train", sampling, CPU, tmp_path
        )
        for name in loader_names()
    }
    places = []
    for batches in zip(*(loader.epoch(3) for loader in loaders.values()), strict=True):
        assert all(same(batches[0], batch) for batch in batches[1:])
        places.append(batches[0].indices)
        assert torch.equal(batches[0].y, torch.from_numpy(packed.train.labels)[places[-1]])
    assert torch.equal(torch.cat(places).sort().values, torch.arange(50_000))


SCRIPT = """
import sys, torch
from pathlib import Path
from fastcat.loaders.choose import choose_loader, make_loader
from fastcat.loaders.convert import convert
from fastcat.loaders.loader import Sampling
from fastcat.loaders.registry import load_dataset
from tests.harness.peak_memory import peak_mib
place, before = Path(sys.argv[1]), peak_mib()
convert(str(place / "tiny"), place / "tiny.packed", data_dir=place)
data = load_dataset(str(place / "tiny.packed"), place)
assert len(data.classes) == 200 and data.image_shape == (64, 64, 3), data.image_shape
sampling = Sampling(index=torch.arange(len(data.train)), batch_size=256, shuffle=True)
cpu = torch.device("cpu")
name = choose_loader("auto", data.train, sampling, cpu)
loader = make_loader(name, data, "train", sampling, cpu, place)
count = sum(len(batch.y) for batch in loader)
print(count, peak_mib() - before)
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("of_class", "most_mib"), [(100, 450), pytest.param(500, 1000, marks=pytest.mark.represented)]
)
def test_tiny_imagenet_takes_bounded_memory_from_files_to_the_last_batch(
    of_class: int, most_mib: int, tmp_path: Path
) -> None:
    """200 classes in their own layout; the files are a few, linked, which nothing tells."""
    root, images = tmp_path / "tiny", []
    for seed in range(8):
        # smooth, as noise takes longer to decode than photographs
        image = Image.fromarray(noise(seed)).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{seed}.jpg")
        images.append(tmp_path / f"{seed}.jpg")
    wnids = [f"n{number:08}" for number in range(200)]
    for kind, wnid in enumerate(wnids):
        place = root / "train" / wnid / "images"
        place.mkdir(parents=True)
        for number in range(of_class):
            os.link(images[(kind + number) % 8], place / f"{wnid}_{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number in range(2000):
        os.link(images[number % 8], root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{wnids[number % 200]}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    count, added_mib = map(int, done.stdout.split())
    assert count == 200 * of_class
    assert added_mib < most_mib
