"""Images of your own: any map-style data set of (image, label).

python examples/own_data.py
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

import fastcat


class Stripes(Dataset):
    """Grey images of 8 x 8 pixels with stripes that lie or stand, in noise."""

    classes = ("lying", "standing")

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        draw = np.random.default_rng([self.seed, i])
        label = i % 2
        image = draw.integers(0, 100, (8, 8, 1), dtype=np.uint8)
        image[::2] += 100
        return (image.transpose(1, 0, 2) if label else image), label


def main(**settings: Any) -> fastcat.RunResult:
    """Train two peers on them and print what they are worth; settings: of `TrainConfig`."""
    data = fastcat.from_items(Stripes(256, seed=0), Stripes(64, seed=1), name="stripes")
    out = Path(tempfile.mkdtemp()) / "run"
    config = {"peers": "trades,alp", "eps": 0.1, "epochs": 2, "batch_size": 32, "out": out}
    config |= {"lr": 0.04, "schedule": "onecycle"}
    run = fastcat.train(fastcat.TrainConfig(**{**config, **settings}), data, quiet=True)
    for name, best in run.best.items():
        print(name, {attack: f"{value:.1%}" for attack, value in best["accuracy"].items()})
    return run


if __name__ == "__main__":
    main()
