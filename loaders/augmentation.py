"""Augmentation of training images: settings, and the random numbers of an epoch.

The numbers depend on seed and epoch alone, so that every loader augments alike. Each kind of change
has a random stream of its own, so that switching one on leaves the others' numbers as they were.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastcat.errors import InputError
from fastcat.seeds import derive_seed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Settings; lengths are in pixels, and 0 switches a change off.

    crop_pad: padding of the random crop.
    crop_reflect: pad with the image mirrored at its edges, not with zeros.
    flip: mirror an image with probability 1/2.
    crop_shift: rows and columns, together at most, that are cut off the edges; the rest is put at a
        random place on black (Li & Spratling 2023).
    cutout: side of a black square around a random pixel (DeVries & Taylor 2017).
    mixup: a of the Beta(a, a) that blends an image with another of its batch (Zhang et al. 2018).
    cutmix: a of the Beta(a, a) that gives the area of a rectangle of another image (Yun et al.
        2019). Both are drawn once a batch.
    """

    crop_pad: int = 0
    crop_reflect: bool = False
    flip: bool = False
    crop_shift: int = 0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Raises InputError for two ways of shifting or of mixing at once."""
        if self.crop_pad and self.crop_shift:
            raise InputError(
                "--crop-pad and --crop-shift both move the image: type --crop-pad 0 with the latter"
            )
        if self.crop_reflect and self.crop_shift:
            raise InputError("--crop-reflect belongs to --crop-pad, not to --crop-shift")
        if self.mixup and self.cutmix:
            raise InputError("--mixup and --cutmix both mix two images: choose one of them")

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def check(self, height: int, width: int) -> None:
        """Raises InputError where images of this size are too small for the settings."""
        side = min(height, width)
        if self.crop_reflect and self.crop_pad >= side:
            raise InputError(
                f"crop-pad is {self.crop_pad}, but images of {width} x {height} pixels mirror "
                f"at most {side - 1}: type --crop-pad {side - 1} or leave out --crop-reflect"
            )
        for name, length, limit in (
            ("crop-pad", self.crop_pad, side + 1),
            ("crop-shift", self.crop_shift, side),
            ("cutout", self.cutout, side),
        ):
            if length >= limit:
                raise InputError(
                    f"{name} is {length}, but the images are {width} x {height} pixels: "
                    f"expected less than {limit}"
                )

    def draw(self, index: Tensor, height: int, width: int, seed: int, epoch: int) -> Tensor:
        """Rows of `kernels/augment.py`, int64 [10, N]: image, shift, flip, window, hole.

        index: images [N] in the order of the epoch.
        """
        n = len(index)

        def stream(name: str) -> torch.Generator:
            return torch.Generator().manual_seed(derive_seed(seed, name, epoch))

        moved = stream("crop and flip")
        shift = torch.randint(-self.crop_pad, self.crop_pad + 1, (2, n), generator=moved)
        flip = (torch.rand(n, generator=moved) < (0.5 if self.flip else 0.0)).long()
        zero = torch.zeros(n, dtype=torch.int64)
        window = torch.stack([zero, zero + height, zero, zero + width])
        hole = torch.stack([zero, zero])
        if self.crop_shift:
            shift, window = _crop_shift(self.crop_shift, n, height, width, stream("crop shift"))
        if self.cutout:
            cut = stream("cutout")
            centre = [torch.randint(0, side, (n,), generator=cut) for side in (height, width)]
            hole = torch.stack(centre) - self.cutout // 2
        return torch.cat([index[None], shift, flip[None], window, hole])

    def draw_mix(self, batches: int, height: int, width: int, seed: int, epoch: int) -> Tensor:
        """float64 [5, batches]: weight of an image itself; top, left, bottom, right of a rectangle.

        The other image is seen in the rectangle. mixup has none: its four numbers are 0.
        """
        # numpy promises that the stream of this generator never changes
        random = np.random.RandomState(derive_seed(seed, "mix", epoch) % 2**32)
        a = self.mixup or self.cutmix
        share = random.beta(a, a, batches)
        if self.mixup:
            return torch.from_numpy(np.stack([share, *np.zeros((4, batches))]))
        # the rectangle is clipped at the edges: the weight follows from the area that is left
        sides = np.sqrt(1 - share) * np.array([[height], [width]])
        centre = random.randint(0, [[height], [width]], (2, batches))
        low = np.clip(centre - sides.astype(int) // 2, 0, [[height], [width]])
        high = np.clip(centre + sides.astype(int) // 2, 0, [[height], [width]])
        share = 1 - np.prod(high - low, axis=0) / (height * width)
        return torch.from_numpy(np.stack([share, *low, *high]))


def mix(x: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed images [B, C, H, W], and the weight [B] of each image itself.

    Image i is mixed with image B - 1 - i: batches are shuffled, so that any pairing is random.
    x: images [B, C, H, W].
    draws: [5] of `draw_mix`, on x's device.
    """
    share, top, left, bottom, right = draws.to(x.dtype)
    i, j = (torch.arange(side, device=x.device) for side in x.shape[2:])
    other_here = ((i >= top) & (i < bottom))[:, None] & ((j >= left) & (j < right))
    by_rectangle = bottom > top
    weight = torch.where(by_rectangle, 1 - other_here.to(x.dtype), share)
    mixed = x * weight + x.flip(0) * (1 - weight)
    return mixed.contiguous(memory_format=torch.channels_last), share.expand(len(x))


def _crop_shift(
    most: int, n: int, height: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Shifts [2, n] and windows [4, n]; rows and columns cut off are at most `most` together."""
    total = torch.randint(0, most + 1, (n,), generator=generator)

    def up_to(limit: Tensor) -> Tensor:
        return (torch.rand(n, generator=generator, dtype=torch.float64) * (limit + 1)).long()

    cut_columns = up_to(total)
    cut_rows = total - cut_columns
    top, left = up_to(cut_rows), up_to(cut_columns)
    # the window goes to a random place inside of the image
    shift = torch.stack([top - up_to(cut_rows), left - up_to(cut_columns)])
    window = torch.stack([top, top + height - cut_rows, left, left + width - cut_columns])
    return shift, window
