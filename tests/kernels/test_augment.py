"""The augmentation against a loop over pixels."""

import pytest
import torch

from fastcat.kernels.augment import augment
from tests.harness.kernel_cases import augment_draws


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "hole"), [(3, 2), (1, 0)])
def test_every_pixel_comes_from_where_the_formula_says(
    channels: int, hole: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, channels), dtype=torch.uint8, generator=generator)
    white = torch.tensor(255.0 if dtype == torch.uint8 else 1.0)
    images = images if dtype == torch.uint8 else images / 255
    draws = augment_draws(60, 5, 3, 4, generator)
    x = augment(images, draws, hole)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    black = 0
    for b, (index, dy, dx, flip, top, bottom, left, right, hole_y, hole_x) in enumerate(
        draws.T.tolist()
    ):
        for i in range(3):
            for j in range(4):
                row, column = i + dy, (3 - j if flip else j) + dx
                cut = 0 <= i - hole_y < hole and 0 <= j - hole_x < hole
                seen = top <= row < bottom and left <= column < right and not cut
                black += not seen
                pixel = images[index, row, column] if seen else torch.zeros(channels)
                assert torch.equal(x[b, :, i, j], pixel / white)
    assert 100 < black < 600
