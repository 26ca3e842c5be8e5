"""Images that live on the device as one uint8 tensor; batches are gathered and augmented there.

Order, crops and flips of an epoch come from one generator seeded by (seed, epoch) alone, so that
a batch depends on nothing but its place: a resumed run needs no sampler state.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.kernels.augment import augment
from fastcat.seeds import derive_seed

from .dataset import Split


class ResidentLoader:
    """Batches of the images `index` of a split.

    crop_pad: pixels of zero padding for the random crop, 0 for none; flip: mirror every other
    image at random. The last batch holds what is left over, unless that is a single image while
    shuffling: BatchNorm cannot train on one.
    """

    def __init__(
        self,
        split: Split,
        index: Tensor,
        *,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        shuffle: bool = False,
        crop_pad: int = 0,
        flip: bool = False,
    ) -> None:
        self.labels = torch.from_numpy(split.labels[index.numpy()]).to(device)
        # only what is used is read from a memory map
        self.images = torch.from_numpy(np.ascontiguousarray(split.images[index.numpy()])).to(device)
        self.index = index.to(device)
        self.batch_size = batch_size
        self.device = device
        self.seed = seed
        self.shuffle = shuffle
        self.crop_pad = crop_pad
        self.flip = flip

    @property
    def size(self) -> int:
        """Images an epoch."""
        single_left = len(self.index) % self.batch_size == 1 and len(self.index) > 1
        return len(self.index) - (1 if self.shuffle and single_left else 0)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.size // self.batch_size)

    def inputs(self, epoch: int = 0, first_batch: int = 0) -> Iterator[tuple[Tensor]]:
        """For each batch of an epoch what `gather` makes it of, so that a graph can hold that."""
        count = len(self.index)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "data", epoch))
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        offsets = torch.randint(0, 2 * self.crop_pad + 1, (2, count), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if self.flip else 0.0)
        draws = torch.stack([order, *offsets, mirrored.long()]).to(self.device)
        for begin in range(first_batch * self.batch_size, self.size, self.batch_size):
            yield (draws[:, begin : min(begin + self.batch_size, self.size)],)

    def like(self, inputs: tuple[Tensor]) -> Tensor:
        """Images of the shape and layout that `gather` gives, with nothing in them yet."""
        _, height, width, channels = self.images.shape
        shape = (inputs[0].shape[1], height, width, channels)
        return torch.empty(shape, device=self.device).permute(0, 3, 1, 2)

    def gather(self, draws: Tensor) -> Batch:
        """The batch of draws [4, B]: places among the images, crop offsets y and x, mirror."""
        rows = draws[0]
        x = augment(self.images, draws, self.crop_pad)
        return Batch(x, self.labels[rows], self.index[rows])

    def epoch(self, epoch: int = 0, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_batch` on."""
        for inputs in self.inputs(epoch, first_batch):
            yield self.gather(*inputs)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()
