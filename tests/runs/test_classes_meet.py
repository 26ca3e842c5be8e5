"""A network's classes and those of other data: by name, by number, or refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcat.cli import main
from fastcat.errors import InputError
from fastcat.loaders.formats.folder import load_folder
from fastcat.runs.teacher import load_teacher
from fastcat.weights.file import load_weights, outputs_of, save_weights
from tests.harness import tiny
from tests.harness.image_folders import make_folder

NAMES = ("ant", "bee", "cow")
WEIGHTS = Path("run/peers/0-natural.last.safetensors")
SMALL = "--arch tiny --steps 1 --val-steps 1 --epochs 1 --batch-size 5 --val-size 5 --threads 1"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A natural peer of three classes in run/, and its images in own/."""
    tiny.register()
    monkeypatch.chdir(tmp_path)
    make_folder(Path("own"), classes=NAMES, test=20)
    peers = ["--peers", "natural", "--data", "./own", "--out", "run"]
    assert main(["train", *SMALL.split(), *peers]) == 0


def judged(data: str) -> int:
    """How many clean images the run gets right."""
    out = Path(f"{Path(data).name}.json")
    arguments = ["--attacks", "clean", "--data", data, "--out", str(out)]
    assert main(["eval", "run", *arguments]) == 0
    (entry,) = json.loads(out.read_text())["peers"].values()
    return int(entry["attacks"]["clean"]["correct"])


def answers(kind: str) -> int:
    """How often the network is right on the test images of a class."""
    data = load_folder(Path("own"))
    model, _ = load_weights(WEIGHTS)
    wanted = NAMES.index(kind)
    images = torch.from_numpy(data.test.images[data.test.labels == wanted] / np.float32(255))
    return int((model(images.permute(0, 3, 1, 2)).argmax(1) == wanted).sum())


def test_data_that_lack_a_class_are_judged_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches labels that are counted from the first class that is there."""
    Path("fewer").mkdir()
    for part in ("train", "test"):
        for kind in NAMES[1:]:
            (Path("fewer") / part).mkdir(exist_ok=True)
            (Path("fewer") / part / kind).symlink_to(Path("own").absolute() / part / kind)
    assert judged("./own") == sum(map(answers, NAMES))
    assert judged("./fewer") == sum(map(answers, NAMES[1:]))
    assert "go by number" not in capsys.readouterr().out


def test_data_without_names_go_by_number_and_that_is_noted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = load_folder(Path("own"))
    np.savez("x.npz", x_train=data.train.images, y_train=data.train.labels,
             x_test=data.test.images, y_test=data.test.labels)  # fmt: skip
    assert judged("./x.npz") == sum(map(answers, NAMES))
    out = " ".join(capsys.readouterr().out.split())
    assert "the classes of x, 0, 1, 2, go by number as those of 0-natural, ant, bee, cow" in out


def test_data_of_unknown_classes_are_refused_and_nothing_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_folder(Path("pets"), classes=("ant", "cat"))
    assert main(["eval", "run", "--data", "./pets"]) == 2
    assert "'cat' is none of the 3 of run/peers/0-natural" in capsys.readouterr().err
    assert not list(Path("run/eval").glob("*"))
    make_folder(Path("grey"), classes=NAMES, channels=1)
    assert main(["eval", "run", "--data", "./grey"]) == 2
    assert "is for images of 3 channels, but those of grey have 1" in capsys.readouterr().err


def test_a_teacher_of_the_same_classes_in_another_order_speaks_in_the_datas() -> None:
    data = load_folder(Path("own"))
    model, info = load_weights(WEIGHTS)
    turned = {
        name: tensor[[2, 0, 1]] if name.startswith("linear") else tensor
        for name, tensor in model.state_dict().items()
    }
    save_weights(Path("turned.safetensors"), turned, replace(info, classes=("cow", "ant", "bee")))
    teacher = load_teacher("0-teacher", "turned.safetensors", None, data)
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(teacher.model(x), model(x))
    assert not teacher.remarks
    peers = "teacher:weights=turned.safetensors,boosted"
    data_flags = ["--data", "./own", "--out", "taught", "--peers", peers, "--collab", "mat"]
    assert main(["train", *SMALL.split(), *data_flags]) == 0


def test_a_teacher_of_other_classes_is_refused() -> None:
    data = load_folder(Path("own"))
    model, info = load_weights(WEIGHTS)
    save_weights(Path("w.st"), model.state_dict(), replace(info, classes=("ant", "bee", "elk")))
    with pytest.raises(InputError, match=r"own has 3 classes, .*'cow' is none of the 3 of w.st"):
        load_teacher("0-teacher", "w.st", None, data)
    make_folder(Path("two"), classes=NAMES[1:])
    with pytest.raises(InputError, match="knows 3 classes, but two has 2: a teacher needs the"):
        load_teacher("0-teacher", str(WEIGHTS), None, load_folder(Path("two")))
    save_weights(Path("n.st"), model.state_dict(), replace(info, classes=("0", "1", "2")))
    (remark,) = load_teacher("0-teacher", "n.st", None, data).remarks
    assert remark == "the classes of own, ant, bee, cow, go by number as those of n.st, 0, 1, 2"
    assert outputs_of(Path("n.st"), info, data).tolist() == [0, 1, 2]
