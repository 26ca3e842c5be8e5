"""A loader of your own: `backends/sorted_reads.py` brings the images, and no number changes.

    python examples/own_loader.py

In a checkout of fastcat the file would lie in `loaders/backends/`; here its folder is added.
"""

import tempfile
from pathlib import Path

import torch

from fastcat.loaders import backends

# before fastcat reads which loaders there are
backends.__path__.append(str(Path(__file__).parent / "backends"))

import fastcat  # noqa: E402


def main() -> bool:
    """Train on digits through it and through `resident`; whether the weights are the same."""
    networks = []
    for loader in ("sorted-reads", "resident"):
        out = Path(tempfile.mkdtemp()) / "run"
        config = fastcat.TrainConfig(
            peers="at", collab="none", data="digits", eps=0.1, epochs=1, steps=2, val_steps=2,
            train_size=128, val_size=32, batch_size=32, loader=loader, out=out,
        )  # fmt: skip
        fastcat.train(config, quiet=True)
        networks.append(fastcat.load(out, weights="last"))
    ours, theirs = (network.state_dict().values() for network in networks)
    same = all(map(torch.equal, ours, theirs))
    print("the same weights" if same else "other weights")
    return same


if __name__ == "__main__":
    main()
