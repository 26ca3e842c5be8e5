"""The augmentation against a loop over pixels."""

import pytest
import torch

from fastcat.kernels.augment import augment


@pytest.mark.parametrize(("channels", "pad"), [(3, 2), (1, 0)])
def test_every_pixel_comes_from_where_the_formula_says(channels: int, pad: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, channels), dtype=torch.uint8, generator=generator)
    draws = torch.randint(0, 2 * pad + 1, (4, 30), generator=generator)
    draws[0], draws[3] = torch.arange(30) % 5, torch.arange(30) % 2
    x = augment(images, draws, pad)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    for b, (index, dy, dx, flip) in enumerate(draws.T.tolist()):
        for i in range(3):
            for j in range(4):
                row, column = i + dy - pad, (3 - j if flip else j) + dx - pad
                inside = 0 <= row < 3 and 0 <= column < 4
                pixel = images[index, row, column] if inside else torch.zeros(channels)
                assert torch.equal(x[b, :, i, j], pixel / 255)
