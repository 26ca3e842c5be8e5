"""Small image folders for the tests, and what is said about them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastcat.errors import InputError
from fastcat.loaders.folder import load_folder


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
