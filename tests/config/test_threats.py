"""Threat models as they are typed, and whole runs under several of them."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fastcat.attacks.threat import ThreatModel
from fastcat.cli import main
from fastcat.config.threats import choose_threats, format_threats, parse_threats
from fastcat.config.train import TrainConfig
from fastcat.config.yaml_file import to_yaml, yaml_arguments
from fastcat.errors import InputError
from fastcat.runs.collapse import Watch
from fastcat.runs.recorder import table
from fastcat.runs.trainer import Trainer
from fastcat.runs.validate import Validation
from tests.harness import tiny
from tests.harness.runs import SMALL, assert_same_end

BASE = ThreatModel(steps=7, restarts=2)
TEXT = "linf:eps=0.1:step_size=0.04:steps=2,l2:eps=0.6:code=rice,l1:eps=4:steps=1"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_not_said_is_as_in_the_base() -> None:
    assert parse_threats("linf:eps=8/255, l2:step-size=0.1:eps=0.5,l1:eps=12:steps=50", BASE) == (
        ThreatModel(norm="linf", eps=8 / 255, steps=7, restarts=2),
        ThreatModel(norm="l2", eps=0.5, step_size=0.1, steps=7, restarts=2),
        ThreatModel(norm="l1", eps=12, steps=50, restarts=2),
    )
    of_rice = parse_threats("linf:eps=0.1,l2:eps=0.5:code=rice", ThreatModel())
    assert of_rice[1] == ThreatModel(norm="l2", eps=0.5, code="rice")
    # a step of the base's norm says nothing of another one
    other = parse_threats("l2:eps=0.5", ThreatModel(step_size=2 / 255))
    assert other[0].step == 0.125


lengths = st.floats(1e-6, 1, exclude_min=True) | st.integers(1, 255).map(lambda n: n / 255)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.permutations(["linf", "l2", "l1"]), st.lists(lengths, min_size=6, max_size=6),
       st.integers(1, 3), st.integers(1, 1000))  # fmt: skip
def test_what_is_written_is_read_back(
    norms: list[str], numbers: list[float], count: int, steps: int
) -> None:
    """Weight files say in this text what they were trained under."""
    written = tuple(
        ThreatModel(norm=norm, eps=eps, step_size=step, steps=steps)
        for norm, eps, step in zip(norms[:count], numbers[::2], numbers[1::2], strict=False)
    )
    assert parse_threats(format_threats(written), ThreatModel()) == written


@pytest.mark.parametrize(
    ("name", "norms", "way"),
    [
        pytest.param(None, ("linf",), None, id="nothing-said"),
        pytest.param("l1", ("l1",), None, id="l1"),
        pytest.param("avg", ("linf", "l2", "l1"), "avg", id="avg"),
        pytest.param("max", ("linf", "l2", "l1"), "max", id="max"),
        pytest.param("msd", ("linf", "l2", "l1"), "msd", id="msd"),
        pytest.param("avg-official", ("linf", "l2", "l1"), "avg", id="avg-official"),
        pytest.param("max-official", ("linf", "l2", "l1"), "max", id="max-official"),
        pytest.param("msd-official", ("linf", "l2", "l1"), "msd", id="msd-official"),
    ],
)
def test_a_peer_chooses_by_name(name: str | None, norms: tuple[str, ...], way: str | None) -> None:
    chosen = choose_threats(name, parse_threats(TEXT, BASE))
    assert (chosen.norms, chosen.way) == (norms, way)
    assert chosen.name == (name or "linf")
    assert chosen.official == (name or "").endswith("-official")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "unknown norm '': known are l1, l2, linf"),
        ("linf:eps=0.1,", "unknown norm ''"),
        ("l3:eps=1", "unknown norm 'l3'"),
        ("Linf:eps=0.1", "did you mean 'linf'?"),
        ("l2", "l2 has no radius: type for example l2:eps=0.5"),
        ("l2:steps=3", "l2 has no radius"),
        ("l2:eps", "expected settings like l2:eps=0.5"),
        ("l2:eps=0.5:eps=1", "eps stands there twice, as 0.5 and 1: leave one out"),
        ("l2:eps=0.5:step-size=1:step_size=2", "step_size stands there twice"),
        ("l2:eps=large", "'large' is no length in pixels"),
        ("l2:eps=-1", "no length in pixels"),
        ("linf:eps=8", "type 8/255"),
        ("l2:eps=0.5:steps=0", "steps is 0, expected at least 1"),
        ("l2:eps=0.5:steps=2.5", "cannot read 'steps=2.5', expected eps, step_size, steps or code"),
        ("l2:eps=0.5:restarts=2", "cannot read 'restarts=2'"),
        ("l2:eps=0.5,l2:eps=1", "a norm stands there twice"),
    ],
)
def test_texts_that_cannot_be_read(text: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_threats(text, BASE)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_whose_code_training_follows_is_not_in_what_it_is_judged_under() -> None:
    """Catches a weight file whose evaluation is attacked otherwise than those of other runs."""
    written = format_threats([ThreatModel(norm="l2", eps=0.5, steps=3, code="trades")])
    assert written == "l2:eps=0.5:step_size=0.125:steps=3"


def test_the_settings_file_gives_the_threats_back(tmp_path: Path) -> None:
    config = TrainConfig(
        peers="boosted:threat=avg,at:threat=linf,st:threat=l2,at:threat=l1",
        collab="mat-mp",
        threats=TEXT,
    )
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    given_back = yaml_arguments(tmp_path / "c.yaml")
    assert f"--threats={TEXT}" in given_back
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.threat_models() == parse_threats(TEXT, ThreatModel())


PEERS = "boosted:threat=max,boosted:threat=linf,at:threat=l2,st:threat=l1,trades:threat=avg,"
PEERS += "alp:threat=msd,at:threat=max-official,at:threat=msd-official"
RUN = [*SMALL, "--peers", PEERS, "--collab", "mat-mp", "--threats", TEXT, "--epochs", "2"]
RUN += ["--awp", "0.01"]
ATTACKED = [f"{attack}-{norm}" for attack in ("fgsm", "pgd2") for norm in ("linf", "l2", "l1")]


def assert_resumes(run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of the first epoch and resumed, it ends as "whole" did."""
    step = Trainer.train_step

    def stop_after_two(self: Trainer, inputs: Any) -> Any:
        if self.steps_done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, inputs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stop_after_two)
        assert main(["train", *run, "--out", "stopped"]) == 128 + signal.SIGTERM
    assert main(["resume", "stopped"]) == 0
    assert_same_end(Path("stopped"), Path("whole"))


@pytest.mark.slow
def test_a_run_under_several_threats_from_its_steps_to_its_report(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *RUN, "--out", "whole"]) == 0
    epochs = [json.loads(text) for text in Path("whole/metrics.jsonl").read_text().splitlines()]
    for epoch in epochs:
        for entry in epoch["peers"].values():
            accuracy = entry["accuracy"]
            assert list(accuracy) == ["clean", *ATTACKED, "worst"]
            assert accuracy["worst"] <= min(accuracy.values())
            assert {"guidance", "loss", "accuracy"} < set(entry["train"])
    # the table of the log has two accuracies a peer, the report's has all
    lines = Path("whole/log.txt").read_text()
    assert "0-boosted: loss val-clean val-worst" in lines
    assert "0-boosted (tiny, max), 1-boosted (tiny, linf), 2-at (tiny, l2)" in lines
    assert not any(attack in lines for attack in ATTACKED)
    report = Path("whole/report.html").read_text()
    assert "0-boosted worst" in report
    assert all(f"<th>5-alp val {attack}</th>" in report for attack in [*ATTACKED, "worst"])

    settings = yaml.safe_load(Path("whole/config.yaml").read_text())
    assert (settings["threats"], settings["peers"]) == (TEXT, PEERS)

    assert_resumes(RUN, monkeypatch)

    # judged under all, or under one
    evaluate = ["eval", "whole", "--attacks", "clean,fgsm,pgd2", "--n", "30"]
    assert main([*evaluate, "--out", "all.json"]) == 0
    entry = json.loads(Path("all.json").read_text())["peers"]["1-boosted"]
    names = [f"{attack}-{norm}" for attack in ("fgsm", "pgd2") for norm in ("linf", "l2", "l1")]
    assert list(entry["attacks"]) == ["clean", *names, "worst"]
    assert [one["norm"] for one in entry["threats"]] == ["linf", "l2", "l1"]
    assert [one["step_size"] for one in entry["threats"]] == ["0.04", "0.15", "1.0"]
    correct = {name: one["correct"] for name, one in entry["attacks"].items()}
    assert correct.pop("worst") <= min(correct.values())
    for arguments, norm, eps in (
        (["--norm", "l2"], "l2", "0.6"),
        (["--norm", "l2", "--eps", "0.2"], "l2", "0.2"),
        (["--eps", "0.05"], "linf", "0.05"),
    ):
        out = f"{norm}-{eps}-{len(arguments)}.json"
        assert main([*evaluate, *arguments, "--peer", "0", "--out", out]) == 0
        entry = json.loads(Path(out).read_text())["peers"]["0-boosted"]
        assert [(one["norm"], one["eps"]) for one in entry["threats"]] == [(norm, eps)]
        assert list(entry["attacks"]) == ["clean", "fgsm", "pgd2", "worst"]
    capsys.readouterr()
    assert main([*evaluate, "--step-size", "0.1"]) == 2
    assert "--step-size is for one attacker: type --norm too" in capsys.readouterr().err
    assert main([*evaluate, "--peer", "0"]) == 0
    assert "pgd2-linf" in Path("whole/report.html").read_text()


@pytest.mark.slow
def test_several_updates_a_batch_resume_in_their_midst(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = [*SMALL, "--peers", "at:threat=avg-official", "--threats", TEXT, "--epochs", "1"]
    assert main(["train", *run, "--out", "whole"]) == 0
    assert_resumes(run, monkeypatch)


@pytest.mark.slow
def test_the_worst_case_chooses_the_best_weights(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = iter([(0.9, 0.5, 0.2), (0.8, 0.4, 0.3), (0.9, 0.9, 0.3), (0.9, 0.6, 0.1)])

    def measure(self: Validation, k: int, request: Any) -> dict[str, Any]:
        # whosever code training follows
        assert not any(model.code for model in self.threats)
        return {"accuracy": dict(zip(("clean", "pgd2-linf", "worst"), next(judged), strict=True))}

    monkeypatch.setattr(Validation, "measure", measure)
    monkeypatch.setattr(Watch, "look", lambda self, peers: None)
    settings = ["--peers", "at:threat=max", "--threats", TEXT, "--epochs", "4"]
    assert main(["train", *SMALL, *settings, "--out", "run"]) == 0
    epochs = [json.loads(text) for text in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [epoch["peers"]["0-at"]["best"] for epoch in epochs] == [True, True, False, False]


def test_the_table_shows_all_that_one_threat_model_gives() -> None:
    record = {
        "epoch": 1,
        "epochs": 2,
        "lr": 0.1,
        "judged_on": "val",
        "images_per_second": 1.0,
        "seconds": 1.0,
        "peak_memory_mib": 1.0,
        "peers": {
            "0-at": {
                "train": {"loss": 1.0},
                "accuracy": {"clean": 0.5, "pgd2": 0.25},
                "best": True,
            }
        },
    }
    head, row = table(record)
    assert "0-at: loss val-clean val-pgd2" in head
    assert "50.00%  25.00% *" in row
