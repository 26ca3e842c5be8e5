"""Images of another set in every batch: generated or pseudo-labelled data, as the field uses them.

Source: Carmon et al. 2019 (arXiv 1905.13736) and Rebuffi et al. 2021 (arXiv 2103.01946): a fixed
share of every batch, drawn with replacement; an epoch is as long as without them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcat.errors import InputError
from fastcat.seeds import derive_seed

from .class_order import in_order
from .classes import by_number, match
from .dataset import Dataset, Split, as_tensor, read_rows
from .labels import check_labels, class_numbers
from .npz import map_npz, npz_digest
from .readers import Reader
from .registry import load_dataset


@dataclass(frozen=True, kw_only=True)
class Extra:
    """split: images of the own ones' size and labels of their classes; digest: which they are.

    remarks: what there is to say of their classes.
    """

    split: Split
    fraction: float
    digest: str
    remarks: Sequence[str] = ()

    def mixed_in(self, places: Tensor, own: int, batch_size: int, seed: int, epoch: int) -> Tensor:
        """Places [N] with this set's in round(fraction * B) random positions of every batch.

        places: the own ones in the order of the epoch, of which the first are kept; own: how many
        own images there are, behind which this set's are counted.
        """
        generator = torch.Generator().manual_seed(derive_seed(seed, "extra", epoch))
        drawn = own + torch.randint(0, len(self.split), places.shape, generator=generator)
        # of each batch the positions of the smallest random numbers
        is_extra = torch.zeros(len(places), dtype=torch.bool)
        for positions in torch.arange(len(places)).split(batch_size):
            chosen = torch.randperm(len(positions), generator=generator)
            is_extra[positions[chosen[: round(self.fraction * len(positions))]]] = True
        mixed = torch.empty_like(places)
        mixed[is_extra] = drawn[is_extra]
        mixed[~is_extra] = places[: int((~is_extra).sum())]
        return mixed

    def joined_to(self, read: Reader, own: int) -> Reader:
        """A reader of places among both sets; the places of this one begin at `own`."""

        def read_both(batches: Sequence[np.ndarray], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
            are_own = [places < own for places in batches]
            kept = [places[mine] for places, mine in zip(batches, are_own, strict=True)]
            # the small last batch may have no own images, and readers know of no empty ones
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
        """Own images and labels where is_own [B] says, these rows of the extra ones elsewhere."""
        mine = torch.from_numpy(is_own)
        both = images.new_empty(len(mine), *images.shape[1:]), y.new_empty(len(mine))
        for out, part, other in zip(both, (images, y), self._read(rows), strict=True):
            out[mine], out[~mine] = part, other
        return both


def load_extra(
    path: Path,
    fraction: float,
    dataset: Dataset,
    class_order: str = "text",
    progress: Callable[[int, int], None] | None = None,
) -> Extra:
    """The extra images of a file or data set, mapped; pseudo-labels are labels like others.

    path: an uncompressed .npz with image (uint8 [N, H, W, C]) and label (integers [N], numbers of
    the dataset's classes), or what `load_dataset` takes, of which the training images are used, its
    classes in `class_order` and matched with the dataset's by name.
    Raises InputError for images, labels or classes that do not go with those of the dataset.
    """
    remarks: list[str] = []
    if path.suffix == ".npz":
        arrays = map_npz(path)
        if not {"image", "label"} <= arrays.keys():
            raise InputError(
                f"{path} holds {', '.join(sorted(arrays)) or 'nothing'}, expected image and label"
            )
        images, digest = arrays["image"], npz_digest(path)
        labels = class_numbers(arrays["label"], f"the labels of {path}", len(images))
        check_labels(labels, "extra", len(dataset.classes), str(path))
    else:
        loaded = in_order(load_dataset(str(path), path.parent, progress), class_order)
        images, digest = loaded.train.images, loaded.digest
        meeting = loaded.classes, str(path), dataset.classes, dataset.name
        labels, remarks = match(*meeting)[loaded.train.labels], by_number(*meeting)
    own = dataset.train.images
    planes = ": save image.transpose(0, 2, 3, 1)" if images.shape[2:] == own.shape[1:3] else ""
    if len(images.shape) != 4 or (images.shape[1:], images.dtype) != (own.shape[1:], own.dtype):
        raise InputError(
            f"the images of {path} are {images.dtype} {images.shape[1:]}, expected {own.dtype} "
            f"{own.shape[1:]} as those of {dataset.name}{planes}"
        )
    return Extra(split=Split(images, labels), fraction=fraction, digest=digest, remarks=remarks)
