"""What all loaders share: the order of an epoch, its augmentation, the batch made of both.

Order and augmentation come from generators seeded by (seed, epoch) alone, so that a batch depends
on nothing but its place: every loader gives the same, and a resumed run needs no sampler state.
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
    """Which images of a split are seen, in what order, and what happens to them.

    index: places [N] int64 in the split; extra: images of another set that take a share of every
    batch. The last batch holds what is left over, unless that is a single image while shuffling:
    BatchNorm cannot train on one.
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
        """Places [size] of the images of an epoch; those of the extra set follow the `own` ones."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        count = len(self.index)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        places = self.index[order[: self.size]]
        if self.extra is not None:
            places = self.extra.mixed_in(places, own, self.batch_size, self.seed, epoch)
        return places


class Loader(ABC):
    """Batches of a split on the device, as `sampling` says."""

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
        """For each batch of an epoch what `gather` makes it of, so that a graph can hold that."""

    @abstractmethod
    def gather(self, *inputs: Tensor) -> Batch:
        """The batch of these inputs, by device operations alone."""

    def template(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Images of the shape and layout that `gather` gives, with nothing in them yet."""
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
        """Of an epoch the draws [10, size] of `augment` and, where images are mixed, [batches, 5]
        of `mix`.
        """
        sampling, place = self.sampling, (self.sampling.seed, epoch)
        order = sampling.order(epoch, self.own)
        draws = sampling.augmentation.draw(order, self.height, self.width, *place)
        if not sampling.augmentation.mixes:
            return (draws,)
        return draws, sampling.augmentation.draw_mix(len(self), self.height, self.width, *place).T

    def batches(self, drawn: tuple[Tensor, ...], first_batch: int) -> Sequence[tuple[Tensor, ...]]:
        """What `draw` gave for an epoch, batch by batch."""
        draws, *mixes = drawn
        parts = draws.split(self.sampling.batch_size, dim=1)
        return list(zip(parts, *mixes, strict=True))[first_batch:]

    def make_batch(
        self, images: Tensor, y: Tensor, places: Tensor, draws: Tensor, *mixes: Tensor
    ) -> Batch:
        """The batch of rows draws[0] of images, which have labels y [B] and places [B]."""
        augmentation = self.sampling.augmentation
        x = augment(images, draws, augmentation.cutout, augmentation.crop_reflect)
        if not mixes:
            return Batch(x, y, places)
        x, share = mix(x, mixes[0])
        return Batch(x, y, places, y.flip(0), share)
