"""Names of class folders: numbers, accents that Unicode writes in two ways, what systems leave."""

import shutil
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.loaders.class_order import in_order, numeric_order, order_note
from fastcat.loaders.formats.folder import load_folder
from fastcat.loaders.formats.pack import load_pack
from fastcat.loaders.registry import load_dataset
from tests.harness.image_folders import beside, refusal_of
from tests.harness.runs import run_tiny

NFC, NFD = (partial(unicodedata.normalize, form) for form in ("NFC", "NFD"))
SMALL = "--peers at --steps 1 --val-steps 1 --epochs 1 --val-size 3 --batch-size 6 --threads 1"


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A folder of classes 0 .. 11, whose images are of the grey level 10 + 20 times the class."""
    root = tmp_path / "numbers"
    for split in ("train", "test"):
        for k in range(12):
            (root / split / str(k)).mkdir(parents=True)
            for i in range(2):
                grey = np.full((8, 8, 3), 10 + 20 * k, np.uint8)
                Image.fromarray(grey).save(root / split / str(k) / f"{i}.png")
    return root


def levels_are_labels(dataset: object) -> bool:
    parts = (dataset.train, dataset.test)  # type: ignore[attr-defined]
    return all((part.images[:, 0, 0, 0] == 10 + 20 * part.labels).all() for part in parts)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("0", "1", "10", "2"), ("0", "1", "2", "10")),
        (("class1", "class10", "class2"), ("class1", "class2", "class10")),
        (("1_a", "10_a", "9_a"), ("1_a", "9_a", "10_a")),
        (("007", "01", "1"), ("01", "1", "007")),
        (("98", "99", "100"), ("98", "99", "100")),
        (("cat", "dog"), None),
        (("a1", "b10", "b2"), None),
        (("0.1", "0.10", "0.2"), None),
        (("1", "10", "two"), None),
        (("9" * 5000, "1"), None),
        ((), None),
    ],
)
def test_classes_by_number(classes: tuple[str, ...], expected: tuple[str, ...] | None) -> None:
    assert numeric_order(classes) == expected


def test_only_an_order_of_text_that_is_not_the_numbers_is_remarked_upon() -> None:
    note = order_note(("0", "1", "10", "11", "2"))
    assert note is not None
    assert "0, 1, 10, 11, ...; for 0, 1, 2, 10, ..." in note
    for classes in (tuple("0123"), ("10", "2", "1"), ("2", "10"), ("00", "01", "10"), ("a", "b")):
        assert order_note(classes) is None


def test_by_number_labels_are_the_numbers_and_the_pack_beside_stays_as_it_is(
    numbers: Path,
) -> None:
    data = load_folder(numbers)
    assert data.classes == tuple(sorted(map(str, range(12))))
    assert not levels_are_labels(data)
    ordered = in_order(data, "number")
    assert ordered.classes == tuple(map(str, range(12)))
    assert levels_are_labels(ordered)
    assert ordered.digest != data.digest
    assert in_order(data, "text") is data
    assert in_order(ordered, "number") is ordered
    assert load_folder(numbers).digest == data.digest
    assert beside(numbers) == {"numbers.packed"}


def test_names_without_numbers_have_no_such_order(images: Path) -> None:
    with pytest.raises(
        InputError, match="called by numbers, but those of pets are cat, dog: leave"
    ):
        in_order(load_folder(images), "number")


def test_a_pack_by_number_is_not_mistaken_for_the_folders_own(
    numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "convert", str(numbers), f"{numbers}.packed"]) == 0
    assert "note: the classes are called by numbers" in capsys.readouterr().out
    shutil.rmtree(f"{numbers}.packed")
    order = ["--class-order", "number"]
    assert main(["data", "convert", str(numbers), f"{numbers}.packed", *order]) == 0
    assert "note" not in capsys.readouterr().out
    assert levels_are_labels(load_pack(Path(f"{numbers}.packed")))
    assert levels_are_labels(load_dataset(f"{numbers}.packed", tmp_path))
    assert "the classes of" in refusal_of(numbers)
    assert "in another order" in refusal_of(numbers)


def test_info_tells_the_order(numbers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(numbers)]) == 0
    assert "note: the classes are called by numbers" in capsys.readouterr().out


def test_a_run_keeps_its_order_and_is_judged_by_it(numbers: Path, tmp_path: Path) -> None:
    arguments = [*SMALL.split(), "--arch", "tiny", "--data", numbers]
    text = run_tiny("train", *arguments, "--out", tmp_path / "text")
    assert text.returncode == 0, text.stderr
    assert "note: the classes are called by numbers and stand in the order of text" in text.stdout
    run = tmp_path / "number"
    done = run_tiny("train", *arguments, "--class-order", "number", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "note" not in done.stdout
    assert "class_order: number" in (run / "config.yaml").read_text()
    assert run_tiny("resume", run).returncode == 0
    weights = next((run / "peers").iterdir())
    for target in (run, weights):
        judged = run_tiny("eval", target, "--attacks", "clean", "--data", numbers)
        assert judged.returncode == 0, judged.stderr
        assert "other images" not in judged.stdout


def test_a_checkpoint_of_others_is_judged_in_the_order_asked_for(
    numbers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A network that is right on every image, if its outputs are numbers."""
    (tmp_path / "levels_of_grey.py").write_text(
        "from torch import nn\n"
        "def levels(classes: int, channels: int) -> nn.Module:\n"
        "    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*pooled, nn.Linear(channels, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    grey = (10 + 20 * torch.arange(12.0)) / 255
    weight = (1000 * 2 * grey / 3)[:, None].repeat(1, 3)
    torch.save({"2.weight": weight, "2.bias": -1000 * grey**2}, tmp_path / "levels.pt")
    command = ["eval", str(tmp_path / "levels.pt"), "--arch", "levels_of_grey:levels"]
    command += ["--data", str(numbers), "--attacks", "clean", "--device", "cpu"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "16.67%" in out
    assert "note: the classes are called by numbers" in out
    assert main([*command, "--class-order", "number"]) == 0
    out = capsys.readouterr().out
    assert "100.00%" in out
    assert "called by numbers" not in out


def rename(root: Path, train: str, test: str) -> None:
    (root / "train/cat").rename(root / "train" / train)
    (root / "test/cat").rename(root / "test" / test)


@pytest.mark.parametrize("test", [NFC, NFD], ids=["test NFC", "test NFD"])
@pytest.mark.parametrize("train", [NFC, NFD], ids=["train NFC", "train NFD"])
def test_accents_written_in_two_ways_are_one_class(
    images: Path, train: partial[str], test: partial[str]
) -> None:
    rename(images, train("café"), test("café"))
    data = load_folder(images)
    assert data.classes == (train("café"), "dog")
    assert data.test.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_folders_of_one_class_are_refused_by_name(images: Path, split: str) -> None:
    rename(images, NFC("café"), NFC("café"))
    shutil.copytree(images / split / "dog", images / split / NFD("café"))
    message = refusal_of(images)
    assert f"{split} has two folders of the class 'café'" in message
    assert r"'cafe\u0301' and 'caf\xe9'" in message


def test_what_systems_leave_in_folders_is_passed_over(images: Path) -> None:
    for name in (
        "train/cat/Thumbs.db",
        "test/desktop.ini",
        "train/dog/Icon\r",
        "train/cat/._0.png",
    ):
        (images / name).write_bytes(b"no image")
    for name in ("train/__MACOSX", "test/@eaDir"):
        (images / name).mkdir()
    data = load_folder(images)
    assert (data.classes, len(data.train), len(data.test)) == (("cat", "dog"), 10, 4)


@pytest.mark.parametrize("name", ["train/cat/9.png", "train/fox"])
def test_links_in_a_circle_are_refused_by_name(images: Path, name: str) -> None:
    (images / name).symlink_to(Path(name).name)
    assert refusal_of(images).endswith(
        f"{name} cannot be read (Too many levels of symbolic links): remove it"
    )


def test_a_folder_that_is_called_like_an_image_is_refused(images: Path) -> None:
    (images / "train/cat/x.png").mkdir()
    assert "has 'train/cat/x.png': remove folders" in refusal_of(images)
