"""Read in the order of the places, as spinning disks like it, and put back in the batch's order."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcat.loaders.dataset import Dataset, as_tensor
from fastcat.loaders.loader import Sampling
from fastcat.loaders.streamed import StreamedLoader


def sorted_reads(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    data_dir: Path,
    workers: int | None,
) -> StreamedLoader:
    split = getattr(dataset, part)

    def read(batches: Iterable[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for places in batches:
            order = np.argsort(places)
            images = np.empty((len(places), *split.images.shape[1:]), split.images.dtype)
            images[order] = split.images[places[order]]
            yield as_tensor(images), as_tensor(split.labels[places])

    return StreamedLoader(split, sampling, device, read)
