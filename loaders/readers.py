"""How a streamed batch is read on the host."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from .dataset import Split, as_tensor, read_rows

# from the places of each batch, and a seed, to its images [B, H, W, C] and labels [B];
# called in the main thread, read in another
Reader = Callable[[Sequence[np.ndarray], int], Iterator[tuple[Tensor, Tensor]]]


def array_reader(split: Split) -> Reader:
    """Reads rows of arrays, of memory maps, of whatever gives images at an array of places."""

    def read(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for places in batches:
            yield as_tensor(read_rows(split.images, places)), as_tensor(split.labels[places])

    return read
