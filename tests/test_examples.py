"""The scripts of examples/: each runs, and what it shows is so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import tiny

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


SMALL = {"arch": "resnet18", "train_size": 64, "val_size": 32, "batch_size": 32, "epochs": 1,
         "steps": 1, "val_steps": 1, "threads": 1}  # fmt: skip


@pytest.mark.slow
def test_own_method() -> None:
    import own_method

    run = own_method.main(**SMALL)
    record = run.peers["0-focal_trades"]
    assert {"focal", "kl", "guidance"} <= record["train"].keys()
    parts = 0.05 * (record["train"]["focal"] + record["train"]["kl"]) + record["train"]["guidance"]
    assert record["train"]["loss"] == pytest.approx(parts, rel=1e-5)


def test_own_attack() -> None:
    import own_attack

    found = own_attack.main()
    own = found["own_attack:corners:tries=50"]
    assert found["pgd20"] < own < found["clean"], "weaker than gradients, stronger than nothing"


@pytest.mark.slow
def test_own_data() -> None:
    import own_data

    tiny.register()
    run = own_data.main(arch="tiny", epochs=4, steps=2, val_steps=2, threads=1)
    assert run.best["0-trades"]["accuracy"]["clean"] > 0.5


@pytest.mark.slow
def test_own_loop() -> None:
    import own_loop

    report = own_loop.main()
    assert report.accuracy("clean") > 0.8
    assert report.accuracy("pgd20") > 0.6


def test_every_example_is_tested_and_says_how_it_is_run() -> None:
    text = Path(__file__).read_text()
    for file in EXAMPLES.glob("*.py"):
        assert file.stem in text
        assert f"python examples/{file.name}" in file.read_text()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param("own_loop", "pgd20", marks=pytest.mark.represented),
        ("own_loader", "the same weights"),
    ],
)
def test_as_a_script(name: str, said: str) -> None:
    """The loader's alone: which loaders there are is read once a process."""
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    script = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
