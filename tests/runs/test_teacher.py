"""Frozen teachers in whole runs: they teach, and nothing of them moves, is judged or is saved."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from fastcat.cli import main
from fastcat.collaborations._teachers import parse_teachers
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.runs.checkpoint import read_checkpoint
from fastcat.runs.trainer import Trainer
from fastcat.weights.file import load_weights, save_weights
from tests.harness import tiny
from tests.harness.comparison import assert_same
from tests.harness.runs import SMALL, assert_same_end

WEIGHTS = Path("natural/peers/0-natural.last.safetensors")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A natural peer of one epoch in natural/."""
    tiny.register()
    monkeypatch.chdir(tmp_path)
    train("natural", "--peers", "natural", "--epochs", "1")


def train(out: str, *arguments: str) -> None:
    assert main(["train", *SMALL, *arguments, "--out", out]) == 0


def trainer_of(peers: str, **settings: object) -> Trainer:
    small = {"arch": "tiny", "data": "digits", "train_size": 70, "val_size": 20, "batch_size": 20}
    return Trainer(TrainConfig(peers=peers, **{**small, **settings}))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.parametrize("collab", ["cat", pytest.param("mat", marks=pytest.mark.represented)])
def test_a_teacher_teaches_and_never_moves(collab: str, engine: str) -> None:
    """Catches train mode, a graph behind it, weight decay or an average on it."""
    trainer = trainer_of(
        f"teacher:weights={WEIGHTS},boosted", collab=collab, ema=0.9, engine=engine
    )
    (teacher,) = trainer.teachers
    assert [peer.name for peer in trainer.peers] == ["1-boosted"]
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    assert_same(before, load_weights(WEIGHTS)[0].state_dict())
    for inputs in trainer.loader.inputs(0):
        values = dict(zip(trainer.team.loss.names, trainer.train_step(inputs), strict=True))
    assert trainer.engine.name == engine
    assert list(values) == [f"1-boosted/{name}" for name in ("bce", "guidance", "loss", "accuracy")]
    assert values["1-boosted/guidance"] > 0
    assert_same(before, teacher.model.state_dict())
    assert not any(module.training for module in teacher.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_a_run_with_a_teacher_keeps_and_judges_the_peers_alone() -> None:
    train("run", "--peers", f"teacher:weights={WEIGHTS},boosted", "--collab", "mat",
          "--epochs", "2")  # fmt: skip
    names = {path.name for path in Path("run/peers").iterdir()}
    assert names == {"1-boosted.best.safetensors", "1-boosted.last.safetensors"}
    epochs = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [list(epoch["peers"]) for epoch in epochs] == [["1-boosted"], ["1-boosted"]]
    assert main(["eval", "run", "--attacks", "clean", "--n", "20"]) == 0


@pytest.mark.slow
def test_a_run_with_a_teacher_resumes_to_the_same_bits_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first epoch; the configuration holds a path that leads there from anywhere."""
    train("run", "--peers", f"boosted,teacher:weights={WEIGHTS}@tiny", "--collab", "mat",
          "--epochs", "2")  # fmt: skip
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["peers"] == f"boosted,teacher:weights={tmp_path / WEIGHTS}@tiny"
    shutil.copytree("run", "half")
    shutil.copy("half/checkpoints/previous.pt", "half/checkpoints/last.pt")
    assert read_checkpoint(Path("half/checkpoints/last.pt"))["epoch"] == 1
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main(["resume", "../half"]) == 0
    assert_same_end(Path("../run"), Path("../half"))


@pytest.mark.slow
def test_other_weights_are_refused_when_a_run_is_resumed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train("run", "--peers", f"teacher:weights={WEIGHTS},at", "--epochs", "1")
    kept = WEIGHTS.read_bytes()
    model, info = load_weights(WEIGHTS)
    save_weights(WEIGHTS, {k: v * 2 for k, v in model.state_dict().items()}, info)
    assert main(["resume", "run"]) == 2
    assert "weights of 0-teacher" in capsys.readouterr().err
    WEIGHTS.unlink()
    assert main(["resume", "run"]) == 2
    assert "there is no weight file" in capsys.readouterr().err
    WEIGHTS.write_bytes(kept)
    assert main(["resume", "run"]) == 0


def test_teachers_that_do_not_fit_are_refused() -> None:
    model, info = load_weights(WEIGHTS)
    with pytest.raises(InputError, match="holds a tiny, not a resnet18: leave @resnet18 out"):
        trainer_of(f"at,teacher:weights={WEIGHTS}@resnet18")
    save_weights(Path("from1.st"), model.state_dict(), replace(info, classes=tuple("123456789t")))
    with pytest.raises(InputError, match=r"digits has 10 classes, .* '0' is none of .* from1.st"):
        trainer_of("at,teacher:weights=from1.st")
    Path("text.st").write_text("no weights")
    with pytest.raises(InputError, match=r"text.st is damaged or not a safetensors file"):
        trainer_of("at,teacher:weights=text.st")


def test_a_folder_with_a_comma_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configuration could not be read back."""
    (tmp_path / "a,b").mkdir()
    shutil.copy(WEIGHTS, "a,b/w.st")
    monkeypatch.chdir("a,b")
    assert main(["train", *SMALL, "--peers", "at,teacher:weights=w.st", "--out", "run"]) == 2
    assert "expected a path without comma, : and @" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("text", "learns", "expected"),
    [
        ("all", "111", [[1, 2], [0, 2], [0, 1]]),
        ("all", "101", [[1, 2], [], [0, 1]]),
        ("ring", "111", [[2], [0], [1]]),
        ("ring", "01", [[], [0]]),
        ("ring", "1", [[]]),
        (" 0>1 , 1 > 2,0>2,0>1", "111", [[], [0], [0, 1]]),
    ],
)
def test_who_teaches_whom(text: str, learns: str, expected: list[list[int]]) -> None:
    assert parse_teachers(text, [letter == "1" for letter in learns]) == expected


def test_weights_do_not_depend_on_where_the_path_began() -> None:
    """The digest is of the content, and drawing the teacher's first weights changes no peer's."""
    trainers = [trainer_of(f"at,teacher:weights={path}") for path in (WEIGHTS, WEIGHTS.absolute())]
    digests = {trainer.teachers[0].digest for trainer in trainers}
    assert len(digests) == 1
    alone = trainer_of("at")
    assert torch.equal(alone.peers[0].optimizer.flat, trainers[0].peers[0].optimizer.flat)
