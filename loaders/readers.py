"""How the images of a batch are read on the host."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

from .dataset import Split, as_tensor, read_rows

# (batches, seed) -> images [B, H, W, C] and labels [B] of each batch
# batches: image numbers [B] of each; seed: of random transforms in worker processes
# It is called in the main thread; what it returns is iterated in another.
Reader = Callable[[Sequence[np.ndarray], int], Iterator[tuple[Tensor, Tensor]]]


def array_reader(split: Split) -> Reader:
    """A reader of arrays, memory maps and whatever else `Split.images` may be."""

    def read(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        for places in batches:
            yield as_tensor(read_rows(split.images, places)), as_tensor(split.labels[places])

    return read
