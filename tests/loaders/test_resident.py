"""The resident loader: every image once an epoch, augmented by the seed, the same on every path."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as transforms

from fastcat.errors import InputError
from fastcat.kernels.augment import augment
from fastcat.loaders.dataset import Split, channel_statistics
from fastcat.loaders.resident import ResidentLoader
from fastcat.loaders.split import split_indices

CPU = torch.device("cpu")


def random_split(n: int = 23, height: int = 6, width: int = 9, channels: int = 3) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return Split(images, rng.integers(0, 5, n))


def make(split: Split, **settings: object) -> ResidentLoader:
    defaults: dict[str, object] = {"batch_size": 4, "device": CPU}
    return ResidentLoader(split, torch.arange(len(split)), **{**defaults, **settings})  # type: ignore[arg-type]


def test_every_image_once_with_its_own_label_and_place() -> None:
    split = random_split()
    loader = make(split, shuffle=True, seed=3)
    batches = list(loader.epoch(0))
    assert [len(batch.y) for batch in batches] == [4, 4, 4, 4, 4, 3]
    assert len(loader) == 6
    places = torch.cat([batch.indices for batch in batches])
    assert sorted(places.tolist()) == list(range(23))
    assert places.tolist() != list(range(23))
    for batch in batches:
        assert torch.equal(batch.y, torch.from_numpy(split.labels)[batch.indices])
        expected = torch.from_numpy(split.images)[batch.indices].permute(0, 3, 1, 2).float() / 255
        assert torch.equal(batch.x, expected)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)


def test_a_subset_reports_places_in_the_whole_set() -> None:
    split = random_split()
    index = torch.tensor([2, 3, 11])
    (batch,) = ResidentLoader(split, index, batch_size=4, device=CPU)
    assert torch.equal(batch.indices, index)
    assert torch.equal(batch.y, torch.from_numpy(split.labels)[index])


def test_an_epoch_is_given_by_seed_and_number_alone() -> None:
    settings = {"shuffle": True, "crop_pad": 2, "flip": True}

    def pixels(seed: int, epoch: int, first: int = 0) -> list[torch.Tensor]:
        loader = make(random_split(), seed=seed, **settings)
        return [batch.x for batch in loader.epoch(epoch, first)]

    assert all(map(torch.equal, pixels(1, 5), pixels(1, 5)))
    assert not torch.equal(pixels(1, 5)[0], pixels(1, 6)[0])
    assert not torch.equal(pixels(1, 5)[0], pixels(2, 5)[0])
    # going on in the middle of an epoch
    assert all(map(torch.equal, pixels(1, 5)[4:], pixels(1, 5, first=4)))


def test_augmentation_is_pad_crop_then_flip_as_torchvision_does_it() -> None:
    split = random_split()
    images, pad = torch.from_numpy(split.images), 2
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(0, 23, (40,), generator=generator)
    dy, dx = torch.randint(0, 2 * pad + 1, (2, 40), generator=generator)
    flip = torch.rand(40, generator=generator) < 0.5
    draws = torch.stack([index, dy, dx, flip.long()])
    batch = augment(images, draws, pad)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    for b in range(40):
        x = images[index[b]].permute(2, 0, 1).float() / 255
        x = transforms.pad(x, [pad, pad])
        x = transforms.crop(x, int(dy[b]), int(dx[b]), 6, 9)
        x = transforms.hflip(x) if flip[b] else x
        assert torch.equal(batch[b], x)


def test_inputs_say_all_that_gather_needs() -> None:
    """A captured graph sees nothing but these: the same inputs are the same batch, at any time.

    Catches a draw that is made in `gather`, and images for the noise of another shape or layout.
    """
    settings = {"shuffle": True, "crop_pad": 2, "flip": True, "seed": 1}
    loader = make(random_split(), **settings)
    kept = [inputs[0].clone() for inputs in loader.inputs(5)]
    assert [draws.shape for draws in kept] == [(4, 4)] * 5 + [(4, 3)]
    assert all(draws.dtype == torch.int64 for draws in kept)
    torch.manual_seed(1)
    for batch, draws in zip(make(random_split(), **settings).epoch(5), kept, strict=True):
        again = loader.gather(draws)
        assert all(map(torch.equal, batch, again))
        like = loader.like((draws,))
        assert (like.shape, like.stride()) == (batch.x.shape, batch.x.stride())
        assert (like.dtype, like.device) == (batch.x.dtype, batch.x.device)
    for resumed, draws in zip(loader.inputs(5, first_batch=4), kept[4:], strict=True):
        assert torch.equal(resumed[0], draws)


def test_crops_and_flips_are_drawn_evenly() -> None:
    """Every offset of the crop and both mirrorings appear about as often as the others."""
    pad, side = 1, 4
    marked = np.zeros((3600, side, side, 1), dtype=np.uint8)
    marked[:, 1, 1] = 255
    split = Split(marked, np.zeros(3600, dtype=np.int64))
    (batch,) = make(split, batch_size=3600, shuffle=True, crop_pad=pad, flip=True)
    places = batch.x.flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=side * side).reshape(side, side)
    rows = counts.sum(1)
    assert (rows[:3] - 1200).abs().max() < 150  # five standard deviations of a third
    assert rows[3] == 0
    # column 1 moves by -1, 0, 1 and is mirrored half the time: 1/6, 2/6, 2/6, 1/6
    assert (counts.sum(0) - torch.tensor([600, 1200, 1200, 600])).abs().max() < 150


def test_a_single_image_left_over_is_dropped_where_batchnorm_would_fail() -> None:
    split = random_split(n=9)
    trained = make(split, shuffle=True)
    assert [len(batch.y) for batch in trained.epoch()] == [4, 4]
    assert (len(trained), trained.size) == (2, 8)
    assert [len(batch.y) for batch in make(split)] == [4, 4, 1]


def test_splits_are_disjoint_seeded_and_complete() -> None:
    train, val = split_indices(1000, None, 100, seed=0)
    assert len(train) == 900
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(1000))
    again, _ = split_indices(1000, None, 100, seed=0)
    other, _ = split_indices(1000, None, 100, seed=1)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)
    assert [len(part) for part in split_indices(50_000, None, None, 0)] == [48_976, 1024]
    assert [len(part) for part in split_indices(50_000, 2000, None, 0)] == [2000, 200]
    with pytest.raises(InputError, match="more than the 10 there are"):
        split_indices(10, 8, 3, 0)


def test_channel_statistics_are_numpys() -> None:
    images = random_split(n=5000, height=4, width=4).images
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-9)
