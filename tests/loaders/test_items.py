"""A data set of one's own, item by item, through the loaders and a whole run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import fastcat
from fastcat.errors import InputError
from fastcat.loaders.choose import choose_loader, make_loader
from fastcat.loaders.items import from_items
from fastcat.loaders.loader import Epochs
from tests import tiny
from tests.loaders.test_loaders import CPU, MOVED, random_split, same
from tests.run_helpers import assert_same_end

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


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_batches(form: str, tmp_path: Path) -> None:
    dataset = make(FORMS[form])
    assert dataset.classes == tuple("abcde")
    epochs = Epochs(index=torch.arange(24), batch_size=5, shuffle=True, seed=2, augmentation=MOVED)
    assert choose_loader("auto", dataset.train, epochs, CPU) == "torch"
    arrays = make(FORMS["array"])
    expected = make_loader("resident", arrays, "train", epochs, CPU, tmp_path)
    for name in ("torch", "stream", "resident"):
        found = make_loader(name, dataset, "train", epochs, CPU, tmp_path)
        assert all(map(same, expected.epoch(1), found.epoch(1)))


def test_labels_come_from_targets_where_there_are_some() -> None:
    class Labelled(Items):
        targets = torch.from_numpy(SPLIT.labels)
        classes = ("v", "w", "x", "y", "z")

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return super().__getitem__(row)[0], 99

    dataset = from_items(Labelled(24, FORMS["array"]), Items(6, FORMS["array"]), crop_pad=2)
    assert dataset.classes == ("v", "w", "x", "y", "z")
    assert np.array_equal(dataset.train.labels, SPLIT.labels)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (transforms.Compose([FORMS["to_tensor"], transforms.Normalize(0.5, 0.2)]), "normalised"),
        (lambda image: image.astype(np.float32), "divide them by 255"),
        (lambda image: image.astype(np.int64), "is of int64, expected uint8 or floats"),
        (lambda image: image[0, 0], "has shape \\(3,\\)"),
    ],
)
def test_odd_images_are_refused_at_once(form: Callable[[np.ndarray], Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        make(form)


def test_images_of_two_sizes_are_refused_when_they_are_met(tmp_path: Path) -> None:
    """In a worker process too: the sentence comes back whole."""
    dataset = make(lambda image: image[:4] if (image == SPLIT.images[20]).all() else image,
                   classes="abcde")  # fmt: skip
    epochs = Epochs(index=torch.arange(24), batch_size=4)
    for name in ("torch", "stream", "resident"):
        with pytest.raises(InputError, match=r"image 20 is uint8 \(4, 8, 3\).*put a Resize"):
            list(make_loader(name, dataset, "train", epochs, CPU, tmp_path))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"classes": "abc"}, "run from 0 to 4, expected 0 to 2"),
        ({"train": []}, "train data set is empty"),
        ({"test": [(SPLIT.images[0][:4], 0)]}, "expected one size"),
        ({"train": [(SPLIT.images[0], 0.5)]}, "no class indices"),
    ],
)
def test_odd_data_sets_are_refused(settings: dict[str, Any], text: str) -> None:
    parts = {"train": Items(24, FORMS["array"]), "test": Items(6, FORMS["array"])}
    parts |= {name: value for name, value in settings.items() if name != "classes"}
    with pytest.raises(InputError, match=text):
        from_items(*parts.values(), classes=settings.get("classes", "abcde"))


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
