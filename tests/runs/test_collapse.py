"""Runs that collapse: told, stopped, or led back and on more gently, and no kill changes that."""

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcat.runs.loop
import fastcat.runs.trainer
from fastcat.cli import main
from fastcat.runs.checkpoint import good_checkpoint, read_checkpoint
from fastcat.runs.trainer import Trainer
from tests.harness import tiny
from tests.harness.runs import assert_same_end

# at such a rate the network stays at chance, at an eighth of it it learns
RUN = shlex.split(
    "--arch tiny --data digits --peers natural --collab none --train-size 600 --val-size 100 "
    "--batch-size 40 --eps 0.05 --steps 1 --val-steps 1 --threads 1 --log-every 5 --epochs 4 "
    "--save-every 7 --lr 8 --schedule constant"
)


class Killed(BaseException):
    """Ends a run at once, as SIGKILL does."""


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def records(run: str) -> list[dict[str, Any]]:
    """The epochs' records without what is timed."""
    timed = {"seconds", "judging_seconds", "images_per_second", "peak_memory_mib"}
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def test_by_default_a_collapse_is_named_in_all_records_and_training_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *RUN, "--out", "run"]) == 0
    line = next(ln for ln in Path("run/log.txt").read_text().splitlines() if ": dead: " in ln)
    assert line.startswith("0-natural in epoch 3: dead: ")
    assert line in capsys.readouterr().out
    assert line in Path("run/report.html").read_text()
    found = records("run")
    assert "dead" in found[2]["peers"]["0-natural"]["signs"]
    assert len(found) == 4
    assert not good_checkpoint(Path("run")).exists()


def test_stop_keeps_everything_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *RUN, "--on-collapse", "stop", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "0-natural in epoch 3: dead: " in error
    assert "kept as it was in run/checkpoints/last.pt: start a new run" in error
    assert read_checkpoint(Path("run/checkpoints/last.pt"))["epoch"] == 3
    assert len(records("run")) == 3
    assert Path("run/peers/0-natural.last.safetensors").exists()


@contextmanager
def killed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Callable[..., bool]
) -> Iterator[None]:
    """Within, the run is killed after a call of module.name with arguments that fulfil `when`."""
    function = getattr(module, name)

    def deadly(*arguments: Any, **settings: Any) -> Any:
        result = function(*arguments, **settings)
        if when(*arguments):
            raise Killed
        return result

    with monkeypatch.context() as patched:
        patched.setattr(module, name, deadly)
        with pytest.raises(Killed):
            yield


@pytest.mark.slow
def test_a_rollback_goes_on_more_gently_and_no_kill_changes_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = [*RUN, "--on-collapse", "rollback", "--out"]
    assert main(["train", *run, "whole"]) == 0
    found = records("whole")
    state = read_checkpoint(Path("whole/checkpoints/last.pt"))
    rollbacks = state["rollbacks"]
    assert 1 <= len(rollbacks) <= 3
    assert rollbacks[0]["from"] == 3
    assert rollbacks[0]["to"] == 0
    assert "dead" in rollbacks[0]["reason"]
    assert [record["epoch"] for record in found] == [1, 2, 3, 4]
    assert {record["lr"] for record in found} == {8 * 0.5 ** len(rollbacks)}
    assert found[-1]["rollbacks"] == rollbacks
    steps = [json.loads(line) for line in Path("whole/steps.jsonl").read_text().splitlines()]
    assert {step["lr"] for step in steps} == {8 * 0.5 ** len(rollbacks)}
    log = Path("whole/log.txt").read_text()
    assert "back to where epoch 1 begins; from there on the learning rate is 0.5 of what" in log
    assert "epochs 1 to 3 were begun again" in Path("whole/report.html").read_text()

    def dead(record: dict[str, Any]) -> bool:
        return "dead" in record["peers"]["0-natural"]["signs"]

    def before(run: Path, state: dict[str, Any], good: bool) -> bool:
        return not state["rollbacks"] and (state["epoch"], state["step"]) == (2, 7)

    def first_return(run: Path, state: dict[str, Any], good: bool) -> bool:
        return len(state["rollbacks"]) == 1

    def last_return(source: Path, target: Path) -> bool:
        saved = target.name == "good.pt" and read_checkpoint(target)
        return bool(saved) and len(saved["rollbacks"]) == len(rollbacks)

    def within_an_epoch(run: Path, state: dict[str, Any], good: bool) -> bool:
        return len(state["rollbacks"]) == len(rollbacks) and state["step"] == 14

    moments: dict[str, tuple[Any, str, Callable[..., bool]]] = {
        "not-yet": (fastcat.runs.trainer, "save_checkpoint", before),
        "collapsed": (fastcat.runs.loop, "collapse", dead),
        "read": (fastcat.runs.loop, "read_checkpoint", lambda path: True),
        "saved": (fastcat.runs.trainer, "save_checkpoint", first_return),
        "saved-as-good-alone": (os, "replace", last_return),
        "went-on": (fastcat.runs.trainer, "save_checkpoint", within_an_epoch),
    }
    for out, (module, name, when) in moments.items():
        with killed(monkeypatch, module, name, when):
            main(["train", *run, out])
        assert main(["resume", out]) == 0
        assert_same_end(Path(out), Path("whole"))
        assert records(out) == found


def spoil(monkeypatch: pytest.MonkeyPatch, until: int) -> None:
    """A weight becomes NaN in the second epoch, until there were so many rollbacks."""
    train_step = Trainer.train_step

    def spoiling(trainer: Trainer, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        values = train_step(trainer, inputs)
        if (trainer.epoch, trainer.step) == (1, 3) and len(trainer.rollbacks) < until:
            trainer.peers[0].model.get_parameter("linear.bias").data[3] = torch.nan
        return values

    monkeypatch.setattr(Trainer, "train_step", spoiling)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_rolls_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is averaged returns with the rest."""
    gentle = [*RUN, "--lr", "0.2", "--epochs", "3", "--on-collapse", "rollback", "--swa", "1"]
    spoil(monkeypatch, until=1)
    assert main(["train", *gentle, "--out", "run"]) == 0
    state = read_checkpoint(Path("run/checkpoints/last.pt"))
    (back,) = state["rollbacks"]
    assert state["peers"][0]["swa"]["count"] == 3
    assert back["from"] == 2
    assert "of peer 0-natural" in back["reason"]
    assert records("run")[-1]["lr"] == 0.1
    good = read_checkpoint(good_checkpoint(Path("run")))
    assert good["step"] == 0


@pytest.mark.slow
def test_after_three_rollbacks_the_run_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gentle = [*RUN, "--lr", "0.2", "--epochs", "3", "--on-collapse", "rollback"]
    spoil(monkeypatch, until=9)
    assert main(["train", *gentle, "--out", "run"]) == 2
    assert "after 3 returns to an earlier epoch: stopped" in capsys.readouterr().err
    state = read_checkpoint(Path("run/checkpoints/last.pt"))
    assert len(state["rollbacks"]) == 3
    assert all(t.isfinite().all() for t in state["peers"][0]["model"].values())
