"""The loader protocol, and what all loaders share: order, augmentation, making of batches.

Order and augmentation are drawn from (seed, epoch) alone. So every loader gives the same batches,
and a resumed run needs no state of a sampler.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.kernels.augment import augment
from fastcat.seeds import derive_seed

from .augmentation import Augmentation, mix
from .dataset import Split
from .extra import Extra


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which images of a split are seen, in what order, and how they are augmented.

    index: images of the split, int64 [N].
    batch_size: images a batch. The last one holds the rest of an epoch; a rest of a single image
        is left out when shuffling, since BatchNorm cannot train on one.
    seed: of order and augmentation.
    shuffle: whether each epoch has a random order.
    extra: images of another set that take a share of every batch.
    """

    index: Tensor
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    extra: Extra | None = None

    @property
    def size(self) -> int:
        """Images an epoch."""
        single_left = len(self.index) % self.batch_size == 1 and len(self.index) > 1
        return len(self.index) - (1 if self.shuffle and single_left else 0)

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.size // self.batch_size)

    def order(self, epoch: int, own: int) -> Tensor:
        """Images of an epoch in order, int64 [size].

        own: images of the split; image i of the extra set is numbered own + i.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        count = len(self.index)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        places = self.index[order[: self.size]]
        if self.extra is not None:
            places = self.extra.mixed_in(places, own, self.batch_size, self.seed, epoch)
        return places


class Loader(ABC):
    """Batches of a split on a device.

    A loader prepares the `inputs` of a batch, perhaps on the host, and makes the batch of them by
    operations on the device (`gather`), so that a CUDA graph can hold the latter.
    """

    def __init__(self, split: Split, sampling: Sampling, device: torch.device) -> None:
        _, self.height, self.width, self.channels = split.images.shape
        self.own = len(split)
        self.sampling = sampling
        self.device = device
        sampling.augmentation.check(self.height, self.width)

    @property
    def size(self) -> int:
        """Images an epoch."""
        return self.sampling.size

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.sampling)

    @abstractmethod
    def inputs(self, epoch: int = 0, first_batch: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of `gather`, batch by batch, from batch `first_batch` of an epoch on."""

    @abstractmethod
    def gather(self, *inputs: Tensor) -> Batch:
        """A batch of one of `inputs`, by device operations alone."""

    def template(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Uninitialised images of the shape and memory layout of the batch of these inputs."""
        draws = inputs[0]
        shape = (draws.shape[1], self.height, self.width, self.channels)
        return torch.empty(shape, device=self.device).permute(0, 3, 1, 2)

    def epoch(self, epoch: int = 0, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from `first_batch` on."""
        for inputs in self.inputs(epoch, first_batch):
            yield self.gather(*inputs)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch()

    def draw(self, epoch: int) -> tuple[Tensor, ...]:
        """Random numbers of an epoch: [10, size] of `augment`, and [batches, 5] of `mix`.

        The latter are left out where images are not mixed.
        """
        sampling, place = self.sampling, (self.sampling.seed, epoch)
        order = sampling.order(epoch, self.own)
        draws = sampling.augmentation.draw(order, self.height, self.width, *place)
        if not sampling.augmentation.mixes:
            return (draws,)
        return draws, sampling.augmentation.draw_mix(len(self), self.height, self.width, *place).T

    def batches(self, drawn: tuple[Tensor, ...], first_batch: int) -> Sequence[tuple[Tensor, ...]]:
        """The numbers of `draw`, batch by batch, from batch `first_batch` on."""
        draws, *mixes = drawn
        parts = draws.split(self.sampling.batch_size, dim=1)
        return list(zip(parts, *mixes, strict=True))[first_batch:]

    def make_batch(
        self, images: Tensor, y: Tensor, places: Tensor, draws: Tensor, *mixes: Tensor
    ) -> Batch:
        """An augmented batch.

        images: uint8 or float32 [N, H, W, C].
        y: labels [B].
        places: number [B] of each image in the split.
        draws: [10, B]; its first row are the rows of `images` that the batch takes.
        mixes: at most one tensor [5] of `mix`.
        """
        augmentation = self.sampling.augmentation
        x = augment(images, draws, augmentation.cutout, augmentation.crop_reflect)
        if not mixes:
            return Batch(x, y, places)
        x, share = mix(x, mixes[0])
        return Batch(x, y, places, y.flip(0), share)
