"""All images on the device as one tensor.

Batches are gathered and augmented there.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcat.batch import Batch

from ..dataset import Dataset, Split, as_tensor
from ..loader import Loader, Sampling

_CHUNK_BYTES = 64 << 20


def needs_copy(split: Split, sampling: Sampling, device: torch.device) -> bool:
    """Whether images have to be copied: all but arrays and memory maps used on a CPU."""
    in_place = (
        device.type == "cpu" and sampling.extra is None and isinstance(split.images, np.ndarray)
    )
    return not in_place


def resident_bytes(split: Split, sampling: Sampling) -> int:
    """Bytes that the images of `sampling` take on the device."""
    images = len(sampling.index) + (len(sampling.extra.split) if sampling.extra else 0)
    return images * split.images[:1].nbytes


def resident(
    dataset: Dataset,
    part: str,
    sampling: Sampling,
    device: torch.device,
    data_dir: Path,
    workers: int | None,
) -> "ResidentLoader":
    return ResidentLoader(getattr(dataset, part), sampling, device)


class ResidentLoader(Loader):
    """Holds the images of `sampling`.

    On a CPU an array, perhaps a memory map, is used where it is, without a copy.
    """

    def __init__(self, split: Split, sampling: Sampling, device: torch.device) -> None:
        super().__init__(split, sampling, device)
        # row of self.images of each image of the split
        self.rows = torch.arange(len(split))
        if not needs_copy(split, sampling, device):
            self.images = as_tensor(split.images)
            self.labels = as_tensor(split.labels)
            self.places = self.rows
            return
        self.rows[sampling.index] = torch.arange(len(sampling.index))
        parts = [(split, sampling.index)]
        if sampling.extra is not None:
            parts.append((sampling.extra.split, torch.arange(len(sampling.extra.split))))
        self.images = _collected(parts, device)
        labels = [as_tensor(part.labels[rows.numpy()]) for part, rows in parts]
        self.labels = torch.cat(labels).to(device)
        offsets = [rows + self.own * n for n, (_, rows) in enumerate(parts)]
        self.places = torch.cat(offsets).to(device)

    def inputs(self, epoch: int = 0, first_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        draws, *mixes = self.draw(epoch)
        places = draws[0]
        behind = places - self.own + len(self.sampling.index)
        rows = torch.where(places < self.own, self.rows[places.clamp(max=self.own - 1)], behind)
        # one upload an epoch, so that no step waits for it
        drawn = (torch.cat([rows[None], draws[1:]]), *mixes)
        yield from self.batches(tuple(tensor.to(self.device) for tensor in drawn), first_batch)

    def gather(self, *inputs: Tensor) -> Batch:
        """A batch of random numbers [10, B], whose first row are rows of `self.images`."""
        draws, *mixes = inputs
        rows = draws[0]
        return self.make_batch(self.images, self.labels[rows], self.places[rows], draws, *mixes)


def _collected(parts: list[tuple[Split, Tensor]], device: torch.device) -> Tensor:
    """Images on the device, read in chunks, since a memory map may not fit into memory.

    parts: splits, each with the rows to take.
    """
    count = sum(len(rows) for _, rows in parts)
    first = as_tensor(parts[0][0].images[:1])
    images = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=device)
    begin = 0
    for split, rows in parts:
        for some in rows.split(max(1, _CHUNK_BYTES // first.nbytes)):
            images[begin : begin + len(some)] = as_tensor(split.images[some.numpy()])
            begin += len(some)
    return images
