"""On a CUDA that computes nothing: captures, questions to the host, and order between streams.

FASTCAT_STAND_IN_CUDA names its folder, in which `dry PYTHON ...` runs a script on it. Each test
reads what a script of this folder prints, in a process of its own.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fastcat.registry import names

ROOT = Path(__file__).parents[2]
FOLDER = os.environ.get("FASTCAT_STAND_IN_CUDA")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(FOLDER is None, reason="set FASTCAT_STAND_IN_CUDA to a stand-in's folder"),
]


@cache
def printed(script: str, *arguments: str) -> list[dict[str, Any]]:
    """The JSON objects that a script of this folder prints."""
    assert FOLDER is not None
    done = subprocess.run(
        [f"{FOLDER}/dry", sys.executable, "-m", f"tests.stand_in.{script}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_every_team_is_one_graph_that_asks_the_host_nothing() -> None:
    outcomes = printed("teams")
    assert len(outcomes) > 50
    for outcome in outcomes:
        found = {name: outcome[name] for name in ("graphs", "synchronisations")}
        assert found == {"graphs": 2, "synchronisations": 0}, outcome
        # besides: the noise, copies of the inputs, rates
        assert outcome["launches"] <= 50, outcome
        assert not outcome["violations"], outcome
        assert not outcome["said"], outcome


def test_every_method_is_among_the_teams() -> None:
    trained = {method for outcome in printed("teams") for method in outcome["methods"]}
    assert trained == set(names("fastcat.objectives")) - {"teacher"}


@pytest.mark.parametrize(("flags", "most"), [((), 3300), (("merged",), 2300)])
def test_the_graph_of_a_step_is_small(flags: tuple[str, ...], most: int) -> None:
    """Catches a copy, a cast or a fill in each layer: 40 nodes or more. A step took 3606 before."""
    (outcome,) = printed("nodes", "resnet18", "8", *flags)
    assert most - 100 < outcome["nodes"] <= most


def test_streams_of_a_step_touch_no_memory_without_order() -> None:
    outcomes = printed("side_by_side")
    assert {outcome["how"] for outcome in outcomes} == {"eager", "capture"}
    for outcome in outcomes:
        assert outcome["streams"] > 1, outcome
        assert outcome["operations"] > 200, outcome
        assert not outcome["races"], outcome


@pytest.mark.parametrize("fault", ["no join", "no fork"])
def test_a_stream_that_is_not_waited_for_is_a_race(fault: str) -> None:
    for outcome in printed("side_by_side", fault):
        assert outcome["races"], outcome


def test_what_cuda_forbids_is_noticed() -> None:
    found = {outcome.pop("fault"): outcome for outcome in printed("faults")}
    wait = found.pop("wait")
    assert wait == {"synchronisations": 1, "violations": []}
    assert len(found) == 4
    for fault, outcome in found.items():
        assert outcome["violations"], fault


@pytest.mark.parametrize(
    "settings",
    [
        "--arch resnet18 --peers trades,alp",
        "--arch preactresnet18 --peers at,st --awp 0.01 --precision fp16",
    ],
)
def test_a_run_keeps_its_graphs(
    settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tuned, trained, gone on with and evaluated by the commands themselves; batches that do not
    divide the images have kernels of their own.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = str(tmp_path / "run")
    train = f"train {settings} --data digits --eps 0.1 --batch-size 64 --epochs 1 --device cuda"
    tune = train.replace("train", "tune", 1)
    commands = [
        tune.split(),
        ["--stop-at", "8", *train.split(), "--out", out],
        ["resume", out],
        ["eval", out, "--attacks", "clean,fgsm,pgd5,cw5", "--weights", "last", "--device", "cuda"],
    ]
    for command in commands:
        (outcome,) = printed("command", *command)
        assert outcome["exit"] == (143 if "--stop-at" in command else 0), outcome
        assert not outcome["violations"], outcome
        assert outcome["said"] in ([], ["batches of other than 64 images run eagerly"]), outcome
        assert outcome["graphs"] >= 8 or command[0] in ("tune", "eval"), outcome
    (kept,) = json.loads((tmp_path / "fastcat" / "plans.json").read_text()).values()
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == kept
    assert all(isinstance(taken, float) for taken in kept["steps"].values()), kept
