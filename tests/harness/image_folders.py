"""Small image folders for the tests, and what is said about them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.errors import InputError
from fastcat.loaders.formats.folder import load_folder


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_folder(
    root: Path,
    train: int = 5,
    test: int = 2,
    classes: tuple[str, ...] = ("cat", "dog"),
    **form: int,
) -> Path:
    """PNGs of noise; returns the folder."""
    seed = 0
    for split, count in (("train", train), ("test", test)):
        for kind in classes:
            (root / split / kind).mkdir(parents=True)
            for number in range(count):
                Image.fromarray(noise(seed, **form)).save(root / split / kind / f"{number}.png")
                seed += 1
    return root


def refusal_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_folder(path)
    return str(caught.value)


def beside(path: Path) -> set[str]:
    """Names of what lies beside a folder."""
    return {entry.name for entry in path.parent.iterdir()} - {path.name}


WNIDS = ("n02124075", "n01443537", "n02012849")


def make_tiny_imagenet(root: Path, images: int = 3) -> Path:
    """Tiny ImageNet's layout with three classes of noise; test/ has no labels."""
    seed = 0
    for wnid in WNIDS:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x_0.JPEG\t0\t0\t63\t63\n")
        for number in range(images):
            image = Image.fromarray(noise(seed, 64, 64))
            image.save(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG")
            seed += 1
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True)
        for number in range(images):
            image = Image.fromarray(noise(seed, 64, 64))
            image.save(root / split / "images" / f"{split}_{number}.JPEG")
            seed += 1
    # not in the order of the class folders
    lines = [f"val_{n}.JPEG\t{WNIDS[n % 3]}\t0\t32\t44\t62\n" for n in range(images)]
    (root / "val/val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    words = [("n02124075", "Egyptian cat"), ("n01443537", "goldfish, Carassius auratus")]
    words += [("n02012849", "crane"), ("n03126707", "crane")]
    (root / "words.txt").write_text("".join(f"{wnid}\t{text}\n" for wnid, text in words))
    return root
