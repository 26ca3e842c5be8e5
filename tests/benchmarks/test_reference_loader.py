"""The data pipeline of the loops that we are timed beside: every image once, cropped, flipped."""

import sys

import numpy as np
import pytest
import torch

from fastcat.benchmarks.reference.loader import plain_loader

pytestmark = pytest.mark.usefixtures("one_thread")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("workers", "epochs"), [(0, 8), (2, 1)])
def test_loader_yields_each_image_once(workers: int, epochs: int) -> None:
    """Each is one of the 2 * 9 * 9 flips and crops of the image that its label names."""
    torch.manual_seed(0)
    array = pictures(10)
    loader = plain_loader(array, range(10), 4, workers)
    padded = np.pad(array, ((0, 0), (4, 4), (4, 4), (0, 0)))
    orders, found = [], []
    for _ in range(epochs):
        batches = list(loader)
        assert [len(y) for _, y in batches] == [4, 4, 2]
        x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
        assert x.shape == (10, 3, 32, 32)
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert sorted(y.tolist()) == list(range(10))
        orders.append(y.tolist())
        for picture, label in zip(x, y.tolist(), strict=True):
            seen = (picture * 255).round().to(torch.uint8).numpy()
            # [9, 9, 3, 32, 32]
            crops = np.lib.stride_tricks.sliding_window_view(padded[label], (32, 32), (0, 1))
            both = np.stack([crops, crops[..., ::-1]])
            matches = np.argwhere((both == seen).all((3, 4, 5)))
            assert len(matches) == 1
            found.append(matches[0])
    if epochs > 1:
        assert len({tuple(order) for order in orders}) > 1
        # flips, rows and columns
        assert np.min(found, axis=0).tolist() == [0, 0, 0]
        assert np.max(found, axis=0).tolist() == [1, 8, 8]


def test_loader_follows_the_global_seed() -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(torch.cat([x for x, _ in plain_loader(pictures(6), range(6), 6, 0)]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_loader_names_what_is_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        plain_loader(pictures(2).astype(np.float32), [0, 1], 2, 0)
    with pytest.raises(ValueError, match="got 2 images and 3 labels"):
        plain_loader(pictures(2), [0, 1, 2], 2, 0)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        plain_loader(pictures(2), [0, 1], 2, 0)
