"""Images that live on the device as one tensor; batches are gathered and augmented there."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastcat.batch import Batch

from .dataset import Split, as_tensor
from .loader import Epochs, Loader

_CHUNK_BYTES = 64 << 20


def needs_copy(split: Split, epochs: Epochs, device: torch.device) -> bool:
    """Whether the images are not already, in memory or mapped, where they are to be."""
    in_place = (
        device.type == "cpu" and epochs.extra is None and isinstance(split.images, np.ndarray)
    )
    return not in_place


def resident_bytes(split: Split, epochs: Epochs) -> int:
    """The memory that the images of `epochs` take on the device."""
    images = len(epochs.index) + (len(epochs.extra.split) if epochs.extra else 0)
    return images * split.images[:1].nbytes


class ResidentLoader(Loader):
    """Holds what `epochs` asks for; on a CPU an array, perhaps a memory map, is not even copied."""

    def __init__(self, split: Split, epochs: Epochs, device: torch.device) -> None:
        super().__init__(split, epochs, device)
        # by place among the own images: the row here
        self.rows = torch.arange(len(split))
        if not needs_copy(split, epochs, device):
            self.images = as_tensor(split.images)
            self.labels = as_tensor(split.labels)
            self.places = self.rows
            return
        self.rows[epochs.index] = torch.arange(len(epochs.index))
        parts = [(split, epochs.index)]
        if epochs.extra is not None:
            parts.append((epochs.extra.split, torch.arange(len(epochs.extra.split))))
        self.images = _collected(parts, device)
        labels = [as_tensor(part.labels[rows.numpy()]) for part, rows in parts]
        self.labels = torch.cat(labels).to(device)
        offsets = [rows + self.own * n for n, (_, rows) in enumerate(parts)]
        self.places = torch.cat(offsets).to(device)

    def inputs(self, epoch: int = 0, first_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        draws, *mixes = self.draw(epoch)
        places = draws[0]
        behind = places - self.own + len(self.epochs.index)
        rows = torch.where(places < self.own, self.rows[places.clamp(max=self.own - 1)], behind)
        # uploaded once an epoch, so that no step waits for it
        drawn = (torch.cat([rows[None], draws[1:]]), *mixes)
        yield from self.batches(tuple(tensor.to(self.device) for tensor in drawn), first_batch)

    def gather(self, *inputs: Tensor) -> Batch:
        """The batch of draws [10, B], whose first row are rows of the images held here."""
        draws, *mixes = inputs
        rows = draws[0]
        return self.make_batch(self.images, self.labels[rows], self.places[rows], draws, *mixes)


def _collected(parts: list[tuple[Split, Tensor]], device: torch.device) -> Tensor:
    """The images of these rows on the device, read in chunks: a memory map is never read whole."""
    count = sum(len(rows) for _, rows in parts)
    first = as_tensor(parts[0][0].images[:1])
    images = torch.empty((count, *first.shape[1:]), dtype=first.dtype, device=device)
    begin = 0
    for split, rows in parts:
        for some in rows.split(max(1, _CHUNK_BYTES // first.nbytes)):
            images[begin : begin + len(some)] = as_tensor(split.images[some.numpy()])
            begin += len(some)
    return images
