"""A data set of one's own, item by item, through the loaders and a whole run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import v2

import fastcat
from fastcat.errors import InputError
from fastcat.loaders.choose import choose_loader, make_loader
from fastcat.loaders.items import from_items
from fastcat.loaders.loader import Sampling
from tests.harness import tiny
from tests.harness.random_images import CPU, MOVED, random_split, same
from tests.harness.runs import assert_same_end

SPLIT = random_split(24, 8, 8)


class Items:
    """A map-style data set of SPLIT's first images, made by `form` of them."""

    def __init__(self, count: int, form: Callable[[np.ndarray], Any]) -> None:
        self.count = count
        self.form = form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.form(SPLIT.images[row]), int(SPLIT.labels[row])


def make(form: Callable[[np.ndarray], Any], **settings: Any) -> fastcat.loaders.dataset.Dataset:
    settings = {"classes": "abcde", **settings}
    return from_items(Items(24, form), Items(6, form), **settings)


FORMS = {
    "pil": Image.fromarray,
    "array": lambda image: image,
    "tensor": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    "to_tensor": transforms.ToTensor(),
}


@pytest.mark.process
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_batches(form: str, tmp_path: Path) -> None:
    dataset = make(FORMS[form])
    assert dataset.classes == tuple("abcde")
    sampling = Sampling(
        index=torch.arange(24), batch_size=5, shuffle=True, seed=2, augmentation=MOVED
    )
    assert choose_loader("auto", dataset.train, sampling, CPU) == "torch"
    arrays = make(FORMS["array"])
    expected = make_loader("resident", arrays, "train", sampling, CPU, tmp_path)
    for name in ("torch", "stream", "resident"):
        found = make_loader(name, dataset, "train", sampling, CPU, tmp_path)
        assert all(map(same, expected.epoch(1), found.epoch(1)))


def pillow(mode: str, values: np.ndarray) -> Callable[[np.ndarray], Any]:
    return lambda _: Image.frombytes(mode, values.shape[1::-1], values.tobytes())


DEEP = np.linspace(0, 65535, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (transforms.Compose([FORMS["to_tensor"], transforms.Normalize(0.5, 0.2)]), "normalised"),
        (lambda image: image.astype(np.float32), "train image 0: .* divide them by 255"),
        (lambda image: image.astype(np.int64), "is of int64, expected uint8 or floats"),
        (lambda image: image[0, 0], "has shape \\(3,\\)"),
        (lambda image: image[None], "has shape \\(1, 8, 8, 3\\)"),
        (lambda image: np.full_like(image, np.nan, dtype="f4"), "some pixels are NaN"),
        # Pillow would clip them at 255
        (pillow("I;16", DEEP.astype("<u2")), "more than 8 bits .*I;16.: give 8 bits, or floats"),
        (pillow("I;16B", DEEP.astype(">u2")), "more than 8 bits .*I;16B"),
        (pillow("I", DEEP.astype("i4")), "more than 8 bits .*mode I.:"),
        (pillow("F", DEEP.astype("f4")), "more than 8 bits .*mode F.:"),
        # channels where the height or width should be
        (lambda image: image.transpose(2, 0, 1), "8 channels of 3 x 8 .*transpose.1, 2, 0"),
        (lambda image: image.transpose(2, 0, 1) / 255, "8 channels of 3 x 8 .*transpose"),
        (lambda image: image[None, ..., 0], "8 channels of 1 x 8 .*transpose"),
        (lambda image: np.zeros((4, 8, 8), np.uint8), "8 channels of 4 x 8 .*transpose"),
        (torch.from_numpy, "8 channels of 8 x 3 .*permute.2, 0, 1"),
        (lambda image: torch.from_numpy(image[..., :1]), "8 channels of 8 x 1 .*permute"),
    ],
)
def test_odd_images_are_refused_at_once(form: Callable[[np.ndarray], Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        make(form)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_images_of_any_bands_are_taken_where_these_come_last(channels: int) -> None:
    image = np.zeros((8, 8, channels), np.uint8)
    assert make(lambda _: image).image_shape == (8, 8, channels)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert make(lambda _: tensor).image_shape == (8, 8, channels)
    assert make(lambda _: (tensor / 255).bfloat16()).image_shape == (8, 8, channels)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [*((mode, 1) for mode in ("1", "L", "LA")), *((mode, 3) for mode in ("P", "RGBA", "CMYK"))],
)
def test_pillow_images_become_grey_or_colour_as_those_of_folders(mode: str, channels: int) -> None:
    """And stay as they were: what is dropped of a palette's transparency is dropped of a copy."""
    image = Image.fromarray(SPLIT.images[0]).convert(mode)
    image.info["transparency"] = 0
    dataset = make(lambda _: image)
    wanted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(dataset.train.images[:1][0], wanted.reshape(8, 8, channels))
    assert image.info == {"transparency": 0}


@pytest.mark.parametrize(
    ("odd", "remedy"),
    [
        (lambda image: image.resize((8, 4)), transforms.Resize((8, 8))),
        (lambda image: image.convert("L"), v2.RGB()),
    ],
)
def test_images_of_two_kinds_are_refused_with_what_makes_them_alike(
    odd: Callable[[Any], Any], remedy: Callable[[Any], Any]
) -> None:
    """What the sentence says is tried, on Pillow's images and behind ToTensor."""

    def form(image: np.ndarray) -> Any:
        pillow = Image.fromarray(image)
        return odd(pillow) if (image == SPLIT.images[20]).all() else pillow

    name = "RGB" if isinstance(remedy, v2.RGB) else "Resize((8, 8))"
    with pytest.raises(InputError, match=f"train image 20 is .*{re.escape(name)}"):
        make(form)
    assert make(lambda image: remedy(form(image))).image_shape == (8, 8, 3)
    assert make(lambda image: remedy(transforms.ToTensor()(form(image)))).image_shape == (8, 8, 3)


class Changing(Items):
    """Other images or labels from the second reading on."""

    def __init__(self, change: Callable[[Any, int], tuple[Any, int]]) -> None:
        super().__init__(24, FORMS["array"])
        self.change = change
        self.seen: set[int] = set()

    def __getitem__(self, row: int) -> tuple[Any, int]:
        item = super().__getitem__(row)
        if row not in self.seen or row != 20:
            self.seen.add(row)
            return item
        return self.change(*item)


@pytest.mark.process
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda image, label: (image[:4], label), r"image 20 is uint8 \(4, 8, 3\).*Resize"),
        (lambda image, label: (image, (label + 1) % 5), "image 20 had the label . and has . now"),
    ],
)
def test_images_that_change_are_refused_when_they_are_met(
    change: Callable[[Any, int], tuple[Any, int]], text: str, tmp_path: Path
) -> None:
    """In a worker process too: the sentence comes back whole."""
    sampling = Sampling(index=torch.arange(24), batch_size=4)
    for name in ("torch", "stream", "resident"):
        dataset = from_items(Changing(change), Items(6, FORMS["array"]))
        with pytest.raises(InputError, match=text):
            list(make_loader(name, dataset, "train", sampling, CPU, tmp_path))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": "abc"}, "run from 0 to 4, expected 0 to 2"),
        ({"train": []}, "train data set is empty"),
        ({"test": [(SPLIT.images[0][:4], 0)]}, r"test image 0 is .*Resize\(\(8, 8\)\)"),
        ({"train": [(SPLIT.images[0], 0.5)]}, "label of train image 0 is 0.5, expected the number"),
        ({"train": [(SPLIT.images[0], 1, 0)]}, "train item 0 is a tuple of 3 values, expected"),
        ({"test": [{"image": 0, "label": 1}]}, "test item 0 is a dict of 'image', 'label', expec"),
        ({"test": SPLIT.images}, "test item 0 is a ndarray"),
        ({"test": DataLoader([(SPLIT.images[0], 1)])}, "is a DataLoader, expected one of .image"),
        ({"test": None}, "is a NoneType"),
        ({"train": [(SPLIT.images[0], 3)] * 9}, "own has only one class, 'd': at least two"),
    ],
)
def test_odd_data_sets_are_refused(settings: dict[str, Any], text: str) -> None:
    parts: dict[str, Any] = {part: Items(24, FORMS["array"]) for part in ("train", "test")}
    parts |= {name: value for name, value in settings.items() if name != "classes"}
    with pytest.raises(InputError, match=text):
        from_items(*parts.values(), classes=settings.get("classes", "abcde"))


@pytest.mark.slow
@pytest.mark.process
def test_a_run_on_a_data_set_of_ones_own_is_repeatable_and_resumed_with_it(tmp_path: Path) -> None:
    tiny.register()
    config = fastcat.TrainConfig(
        arch="tiny", steps=1, val_steps=1, epochs=2, batch_size=6, val_size=4, threads=1,
        out=tmp_path / "whole", eps=0.1,
    )  # fmt: skip
    dataset = make(FORMS["pil"], flip=True)
    whole = fastcat.train(config, dataset)
    assert set(whole.peers) == {"0-trades", "1-alp"}
    fastcat.train(replace(config, out=tmp_path / "again"), make(FORMS["array"], flip=True))
    assert_same_end(tmp_path / "whole", tmp_path / "again")
    assert fastcat.resume(tmp_path / "whole", dataset).peers == whole.peers
    with pytest.raises(InputError, match="there is no data set 'own'"):
        fastcat.resume(tmp_path / "whole")
    with pytest.raises(InputError, match="not those that the run began with"):
        fastcat.resume(tmp_path / "whole", make(lambda image: 255 - image, flip=True))
