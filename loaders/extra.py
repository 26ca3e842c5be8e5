"""Images of another set in every batch: generated or pseudo-labelled data, as the field uses them.

Source: Carmon et al. 2019 (arXiv 1905.13736) and Rebuffi et al. 2021 (arXiv 2103.01946): a fixed
share of every batch, drawn with replacement; an epoch is as long as without them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcat.seeds import derive_seed

from .dataset import Split, as_tensor, read_rows
from .readers import Reader


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A second training set and its share of every batch.

    split: images as large as those of the data set, with labels of its classes.
    fraction: share of a batch.
    digest: which images they are.
    remarks: sentences for the user about their classes.
    """

    split: Split
    fraction: float
    digest: str
    remarks: Sequence[str] = ()

    def mixed_in(self, places: Tensor, own: int, batch_size: int, seed: int, epoch: int) -> Tensor:
        """The epoch's order [N], with round(fraction * B) random positions of every batch of B
        given to random extra images. Images of the data set keep their order; its last are left
        out. Extra image i is numbered own + i.

        places: the epoch's order without extra images.
        own: images of the data set.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "extra", epoch))
        drawn = own + torch.randint(0, len(self.split), places.shape, generator=generator)
        # extra images take the first positions of a random order of each batch
        is_extra = torch.zeros(len(places), dtype=torch.bool)
        for positions in torch.arange(len(places)).split(batch_size):
            chosen = torch.randperm(len(positions), generator=generator)
            is_extra[positions[chosen[: round(self.fraction * len(positions))]]] = True
        mixed = torch.empty_like(places)
        mixed[is_extra] = drawn[is_extra]
        mixed[~is_extra] = places[: int((~is_extra).sum())]
        return mixed

    def joined_to(self, read: Reader, own: int) -> Reader:
        """A reader of both sets: of image numbers below `own` by `read`, of others here."""

        def read_both(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
            are_own = [places < own for places in batches]
            kept = [places[mine] for places, mine in zip(batches, are_own, strict=True)]
            # a small last batch may be extra images alone, and readers take no empty batch
            reading = read([places for places in kept if len(places)], seed)
            nothing = self._read(np.arange(0))
            return (
                self._join(places[~mine] - own, mine, *(next(reading) if mine.any() else nothing))
                for places, mine in zip(batches, are_own, strict=True)
            )

        return read_both

    def _read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        labels = self.split.labels[rows].astype(np.int64)
        return as_tensor(read_rows(self.split.images, rows)), as_tensor(labels)

    def _join(
        self, rows: np.ndarray, is_own: np.ndarray, images: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch from both sets.

        rows: of the extra images, in the order of their positions.
        is_own: bool [B], positions of the data set's images.
        images, y: those, with their labels.
        """
        mine = torch.from_numpy(is_own)
        both = images.new_empty(len(mine), *images.shape[1:]), y.new_empty(len(mine))
        for out, part, other in zip(both, (images, y), self._read(rows), strict=True):
            out[mine], out[~mine] = part, other
        return both
