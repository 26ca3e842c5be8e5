"""The loaders: every image once an epoch, augmented by the seed, the same whatever brings it."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcat.errors import InputError
from fastcat.loaders.augmentation import Augmentation
from fastcat.loaders.backends.resident import ResidentLoader
from fastcat.loaders.choose import choose_loader, make_loader, unchanged_loader
from fastcat.loaders.dataset import Split, channel_statistics
from fastcat.loaders.extra import Extra
from fastcat.loaders.formats.beton import read_beton, write_beton
from fastcat.loaders.loader import Loader, Sampling
from fastcat.loaders.registry import loader_names
from fastcat.loaders.streamed import StreamedLoader, ahead
from fastcat.loaders.validation_split import split_indices
from tests.harness.random_images import CPU, MOVED, random_dataset, random_split, same


def make(split: Split, **settings: object) -> ResidentLoader:
    defaults: dict[str, object] = {"index": torch.arange(len(split)), "batch_size": 4}
    return ResidentLoader(split, Sampling(**{**defaults, **settings}), CPU)  # type: ignore[arg-type]


AUGMENTATIONS = {
    "none": Augmentation(),
    "crop and flip": MOVED,
    "reflected": Augmentation(crop_pad=3, crop_reflect=True, flip=True),
    "all but mixing": Augmentation(crop_shift=4, flip=True, cutout=3),
    "mixup": Augmentation(crop_pad=1, mixup=0.8),
    "cutmix": Augmentation(flip=True, cutmix=1.0),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where .beton files are kept between tests."""
    return tmp_path_factory.mktemp("data")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stream", "torch", "ffcv"])
@pytest.mark.parametrize("mixed_in", [False, True], ids=["alone", "with extra"])
@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [3, pytest.param(1, marks=pytest.mark.represented)])
def test_the_same_seed_gives_the_same_batches_with_every_loader(
    channels: int, kind: str, mixed_in: bool, name: str, data_dir: Path
) -> None:
    if name == "ffcv":
        pytest.importorskip("ffcv", reason="FFCV is not installed", exc_type=ImportError)
    dataset = random_dataset(channels)
    sampling = Sampling(
        index=torch.arange(2, 23),
        batch_size=4,
        seed=3,
        shuffle=True,
        augmentation=AUGMENTATIONS[kind],
        extra=Extra(split=random_split(40, channels=channels), fraction=0.6, digest="")
        if mixed_in
        else None,
    )
    expected, found = (
        make_loader(n, dataset, "train", sampling, CPU, data_dir) for n in ("resident", name)
    )
    assert isinstance(found, StreamedLoader)
    for epoch in (0, 1):
        batches = list(expected.epoch(epoch))
        assert len(batches) == len(expected) == 5
        assert all(map(same, batches, list(found.epoch(epoch))))
        # going on in the middle of an epoch
        assert all(map(same, batches[3:], list(found.epoch(epoch, 3))))
    assert not list(found.epoch(0, 5))


@pytest.mark.slow
def test_batches_are_not_overwritten_later(data_dir: Path) -> None:
    """FFCV decodes into a ring of five batches."""
    pytest.importorskip("ffcv", reason="FFCV is not installed", exc_type=ImportError)
    threads = torch.get_num_threads()
    dataset = random_dataset(n=200)
    sampling = Sampling(index=torch.arange(200), batch_size=4)
    inputs = list(make_loader("ffcv", dataset, "train", sampling, CPU, data_dir).inputs())
    images = torch.cat([images for _, images, *_ in inputs])
    assert torch.equal(images, torch.from_numpy(dataset.train.images))
    assert torch.get_num_threads() == threads


def test_extra_images_take_their_share_of_every_batch() -> None:
    """Catches a share of the epoch instead of the batch, and extra images at fixed positions."""
    split, extra = random_split(40), random_split(9)
    mixing = Extra(split=extra, fraction=0.7, digest="")
    loader = make(split, batch_size=10, seed=1, shuffle=True, extra=mixing)
    positions, own = [], []
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            is_extra = batch.indices >= 40
            assert is_extra.sum() == 7
            positions.append(is_extra)
            rows = batch.indices[is_extra] - 40
            assert torch.equal(batch.y[is_extra], torch.from_numpy(extra.labels)[rows])
            pixels = torch.from_numpy(extra.images)[rows].permute(0, 3, 1, 2)
            assert torch.equal(batch.x[is_extra], pixels / torch.tensor(255.0))
            own += batch.indices[~is_extra].tolist()
    assert len(loader) == 4, "an epoch is as long as without them"
    assert len({tuple(mask.tolist()) for mask in positions}) > 6
    # three images of four batches, none twice in an epoch
    assert all(len(set(own[e : e + 12])) == 12 for e in (0, 12, 24))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resident", "stream", "torch", "ffcv"])
@pytest.mark.parametrize("fraction", [0.8, 0.2], ids=["extra", "own"])
def test_a_small_last_batch_may_be_of_one_kind_alone(
    name: str, fraction: float, data_dir: Path, tmp_path: Path
) -> None:
    dataset = random_dataset()
    write_beton(tmp_path / "extra.beton", Split(random_split(9).images, np.arange(9)))
    extra = Extra(split=read_beton(tmp_path / "extra.beton"), fraction=fraction, digest="")
    sampling = Sampling(index=torch.arange(22), batch_size=5, shuffle=True, extra=extra)
    loader = make_loader(name, dataset, "train", sampling, CPU, data_dir)
    for epoch in (0, 1):
        *full, last = loader.epoch(epoch)
        for batch in (*full, last):
            is_extra = batch.indices >= 23
            assert is_extra.sum() == round(fraction * len(batch.y))
            assert batch.y.dtype == torch.int64
            assert batch.y[is_extra].tolist() == (batch.indices[is_extra] - 23).tolist()
        assert (len(last.y), int(is_extra.sum())) == (2, 2 if fraction == 0.8 else 0)
        # going on where nothing but that batch is left
        (again,) = loader.epoch(epoch, len(loader) - 1)
        assert same(last, again)


def test_auto_takes_what_suits(data_dir: Path) -> None:
    split = random_split()
    sampling = Sampling(index=torch.arange(23), batch_size=4)
    assert choose_loader("auto", split, sampling, CPU) == "resident"
    extra = Extra(split=split, fraction=0.5, digest="")
    mixing = Sampling(index=torch.arange(23), batch_size=4, extra=extra)
    assert choose_loader("auto", split, mixing, CPU) == "stream"
    with pytest.raises(InputError, match=r"'strem'.*did you mean 'stream'"):
        choose_loader("strem", split, sampling, CPU)
    assert {choose_loader(name, split, sampling, CPU) for name in loader_names()} == set(
        loader_names()
    )
    assert isinstance(unchanged_loader(random_dataset(), "test", sampling, CPU), Loader)


def test_a_memory_map_is_not_copied_on_a_cpu(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", random_split().images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    loader = make(Split(mapped, random_split().labels), index=torch.tensor([5, 2]))
    assert loader.images.data_ptr() == mapped.ctypes.data
    (batch,) = loader
    assert batch.indices.tolist() == [5, 2]


def test_a_copy_holds_no_more_than_is_used() -> None:
    extra = Extra(split=random_split(3), fraction=0.5, digest="")
    loader = make(random_split(), index=torch.tensor([5, 2, 7]), extra=extra)
    assert len(loader.images) == 6


class _Broken:
    """Images of which the third batch cannot be read."""

    shape, dtype = (23, 6, 9, 3), np.dtype(np.uint8)

    def __getitem__(self, rows: object) -> np.ndarray:
        if isinstance(rows, np.ndarray) and 8 in rows:
            raise InputError("image 8 is gone")
        return random_split().images[rows]  # type: ignore[no-any-return]


def test_what_fails_while_reading_ahead_is_raised_in_its_place() -> None:
    split = Split(_Broken(), random_split().labels)
    batches = unchanged_loader(
        replace(random_dataset(), train=split, test=split),
        "train",
        Sampling(index=torch.arange(23), batch_size=4),
        CPU,
    ).epoch()
    assert next(batches).indices.tolist() == [0, 1, 2, 3]
    assert next(batches).indices.tolist() == [4, 5, 6, 7]
    with pytest.raises(InputError, match="image 8 is gone"):
        next(batches)


def test_batches_are_read_while_the_one_before_is_worked_on() -> None:
    made = threading.Semaphore(0)

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.release()
            yield number

    items = ahead(numbers())  # type: ignore[arg-type]
    assert next(items) == 0
    # two more, while nothing more is asked for
    assert all(made.acquire(timeout=30) for _ in range(3))
    items.close()


def test_an_epoch_that_is_left_takes_its_thread_along() -> None:
    closed = []

    def numbers() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    before = threading.active_count()
    items = ahead(numbers())  # type: ignore[arg-type]
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert closed
    assert threading.active_count() == before


def test_float_images_are_taken_as_they_are() -> None:
    split = random_split()
    floats = Split((split.images / np.float32(255)).astype(np.float32), split.labels)
    for a, b in zip(make(split), make(floats), strict=True):
        assert torch.equal(a.x, b.x)
    for a, b in zip(
        channel_statistics(split.images), channel_statistics(floats.images), strict=True
    ):
        assert a == pytest.approx(b, rel=1e-6)


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
    (batch,) = make(split, index=index)
    assert torch.equal(batch.indices, index)
    assert torch.equal(batch.y, torch.from_numpy(split.labels)[index])


def test_an_epoch_is_given_by_seed_and_number_alone() -> None:
    settings = {"shuffle": True, "augmentation": MOVED}

    def pixels(seed: int, epoch: int, first: int = 0) -> list[torch.Tensor]:
        loader = make(random_split(), seed=seed, **settings)
        return [batch.x for batch in loader.epoch(epoch, first)]

    assert all(map(torch.equal, pixels(1, 5), pixels(1, 5)))
    assert not torch.equal(pixels(1, 5)[0], pixels(1, 6)[0])
    assert not torch.equal(pixels(1, 5)[0], pixels(2, 5)[0])
    # going on in the middle of an epoch
    assert all(map(torch.equal, pixels(1, 5)[4:], pixels(1, 5, first=4)))


def test_each_epoch_has_an_order_of_its_own() -> None:
    """Catches order drawn by the seed alone."""
    loader = make(random_split(), shuffle=True)
    first, second = (torch.cat([batch.indices for batch in loader.epoch(k)]) for k in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_the_label_mixed_in_is_that_of_the_image_mixed_in(mixing: dict[str, float]) -> None:
    """Every image has one brightness, its label: what a mixed one shows tells both. Catches the
    own label in place of the other's, and shares of the other image.
    """
    labels = np.arange(23) % 5
    shades = np.broadcast_to(labels[:, None, None, None], (23, 12, 12, 1)).astype(np.uint8)
    for batch in make(Split(shades, labels), augmentation=Augmentation(**mixing), shuffle=True):
        assert batch.y_mixed is not None
        assert batch.share is not None
        shown = 255 * batch.x.mean((1, 2, 3))
        expected = batch.share * batch.y + (1 - batch.share) * batch.y_mixed
        torch.testing.assert_close(shown, expected.float(), rtol=0, atol=1e-4)


def test_inputs_say_all_that_gather_needs() -> None:
    """A captured graph sees nothing but these: the same inputs are the same batch, at any time.

    Catches a draw that is made in `gather`, and images for the noise of another shape or layout.
    """
    settings = {"shuffle": True, "augmentation": MOVED, "seed": 1}
    loader = make(random_split(), **settings)
    kept = [inputs[0].clone() for inputs in loader.inputs(5)]
    assert [draws.shape for draws in kept] == [(10, 4)] * 5 + [(10, 3)]
    assert all(draws.dtype == torch.int64 for draws in kept)
    torch.manual_seed(1)
    for batch, draws in zip(make(random_split(), **settings).epoch(5), kept, strict=True):
        again = loader.gather(draws)
        assert same(batch, again)
        template = loader.template((draws,))
        assert (template.shape, template.stride()) == (batch.x.shape, batch.x.stride())
        assert (template.dtype, template.device) == (batch.x.dtype, batch.x.device)
    for resumed, draws in zip(loader.inputs(5, first_batch=4), kept[4:], strict=True):
        assert torch.equal(resumed[0], draws)


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
