"""Augmentation: what is drawn, against slow descriptions of it and against torchvision."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as transforms

from fastcat.errors import InputError
from fastcat.kernels.augment import ROWS, augment
from fastcat.loaders.augmentation import Augmentation, mix

H, W = 6, 9


def drawn(augmentation: Augmentation, n: int = 400, seed: int = 0) -> dict[str, list[int]]:
    draws = augmentation.draw(torch.arange(n), H, W, seed, 0)
    assert draws.shape == (10, n)
    assert draws.dtype == torch.int64
    return dict(zip(ROWS, draws.tolist(), strict=True))


def images(n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # no black pixels, so that what is cut out can be told
    return torch.randint(1, 256, (n, H, W, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_and_flip_are_torchvisions(mode: str) -> None:
    pixels, pad, reflect = images(40), 5, mode == "reflect"
    augmentation = Augmentation(crop_pad=pad, crop_reflect=reflect, flip=True)
    draws = augmentation.draw(torch.arange(40), H, W, 0, 0)
    batch = augment(pixels, draws, reflect=reflect)
    for b, (_, dy, dx, flip, *_) in enumerate(draws.T.tolist()):
        x = pixels[b].permute(2, 0, 1).float() / 255
        x = transforms.pad(x, [pad, pad], padding_mode=mode)
        x = transforms.crop(x, dy + pad, dx + pad, H, W)
        x = transforms.hflip(x) if flip else x
        assert torch.equal(batch[b], x)


def test_crops_and_flips_are_drawn_evenly() -> None:
    """Every offset of the crop and both mirrorings appear about as often as the others."""
    draw = drawn(Augmentation(crop_pad=1, flip=True), 3600)
    for name, values in (("dy", 3), ("dx", 3), ("flip", 2)):
        counts = np.unique(draw[name], return_counts=True)[1]
        assert len(counts) == values
        # five standard deviations
        assert abs(counts - 3600 / values).max() < 150


def test_crop_shift_moves_a_part_of_the_image_over_black() -> None:
    """Against Li & Spratling's description: cut up to 4 lines off in all, shift, fill with black.

    Catches a window that is not moved, one that loses pixels at the edge, and more cut than asked.
    """
    n = 300
    pixels = images(n)
    draws = Augmentation(crop_shift=4).draw(torch.arange(n), H, W, 0, 0)
    batch = (augment(pixels, draws) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    lost, places = set(), set()
    for image, moved in zip(pixels, batch, strict=True):
        rows, columns = (moved.sum(2).sum(axis).nonzero().flatten() for axis in (1, 0))
        part = moved[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        height, width, _ = part.shape
        lost.add((H - height, W - width))
        places.add((H - height, int(rows.min())))
        windows = image.unfold(0, height, 1).unfold(1, width, 1)
        assert (windows == part.permute(2, 0, 1)).flatten(2).all(2).any(), "not a part of the image"
    assert lost == {(r, c) for r in range(5) for c in range(5) if r + c <= 4}
    assert places == {(cut, first) for cut in range(5) for first in range(cut + 1)}


def test_cutout_is_a_black_square_around_any_pixel() -> None:
    draws = Augmentation(cutout=3).draw(torch.arange(500), H, W, 0, 0)
    black = augment(images(500), draws, 3).sum(1) == 0
    # around a pixel in a corner two by two are seen, elsewhere up to three by three
    assert set(black.sum((1, 2)).tolist()) == {4, 6, 9}
    assert black.any(0).all()
    assert (black.sum(2).amax(1) <= 3).all()


def test_one_more_kind_of_change_leaves_the_others_as_they_were() -> None:
    plain = drawn(Augmentation(crop_pad=2, flip=True))
    more = drawn(Augmentation(crop_pad=2, flip=True, cutout=3, mixup=1.0))
    assert all(plain[row] == more[row] for row in ("dy", "dx", "flip"))
    assert drawn(Augmentation(crop_pad=2), seed=1)["dy"] != plain["dy"]


def test_mixup_blends_with_the_mirror_place() -> None:
    augmentation = Augmentation(mixup=0.4)
    mixes = augmentation.draw_mix(2000, H, W, 0, 0)
    shares = mixes[0]
    assert ((shares >= 0) & (shares <= 1)).all()
    # the mean and variance of Beta(0.4, 0.4)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.05)
    assert shares.var().item() == pytest.approx(0.25 / 1.8, abs=0.02)
    x = images(5).permute(0, 3, 1, 2) / 255
    mixed, share = mix(x, mixes[:, 7])
    assert share.dtype == torch.float32
    assert share.tolist() == [pytest.approx(shares[7].item())] * 5
    for b in range(5):
        expected = share[0] * x[b] + (1 - share[0]) * x[4 - b]
        torch.testing.assert_close(mixed[b], expected)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_shows_the_other_image_in_a_rectangle_and_says_how_much() -> None:
    mixes = Augmentation(cutmix=1.0).draw_mix(300, H, W, 0, 0)
    x = images(4).permute(0, 3, 1, 2) / 255
    areas = set()
    for column in mixes.T:
        mixed, share = mix(x, column)
        own, other = (mixed == x).all(1), (mixed == x.flip(0)).all(1)
        assert (own | other).all()
        # all images of the batch have the rectangle at one place
        assert (own == own[0]).all()
        assert share[0].item() == pytest.approx(own[0].float().mean().item())
        rows, columns = ((~own[0]).any(axis).sum() for axis in (1, 0))
        assert rows * columns == (~own[0]).sum()
        areas.add(int((~own[0]).sum()))
    assert len(areas) > 12
    # uniform shares; a rectangle loses what leaves the image, and odd rows and columns
    assert 0.6 < mixes[0].mean() < 0.85


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"crop_pad": 2, "crop_shift": 3}, "both move the image"),
        ({"crop_reflect": True, "crop_shift": 3}, "belongs to --crop-pad"),
        ({"mixup": 1.0, "cutmix": 1.0}, "choose one"),
    ],
)
def test_two_ways_at_once_are_refused(settings: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Augmentation(**settings)


def test_an_image_is_mirrored_by_less_than_its_side() -> None:
    Augmentation(crop_pad=5, crop_reflect=True).check(H, W)
    Augmentation(crop_pad=6).check(H, W)
    with pytest.raises(InputError, match=r"9 x 6 pixels mirror at most 5: type"):
        Augmentation(crop_pad=6, crop_reflect=True).check(H, W)


@pytest.mark.parametrize("settings", [{"crop_shift": 6}, {"cutout": 6}])
def test_what_would_leave_nothing_is_refused(settings: dict) -> None:
    with pytest.raises(InputError, match="images are 9 x 6 pixels: expected less than 6"):
        Augmentation(**settings).check(H, W)
