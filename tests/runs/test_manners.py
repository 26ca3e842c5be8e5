"""A library call leaves the process as it found it, and says nothing that cannot be silenced."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastcat
from tests.harness import tiny

SETTINGS: dict[str, Any] = {
    "arch": "tiny",
    "data": "digits",
    "eps": 0.1,
    "epochs": 2,
    "steps": 1,
    "val_steps": 1,
    "train_size": 40,
    "val_size": 20,
    "batch_size": 20,
    "threads": 2,
    "precision": "tf32",
}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def config(**settings: Any) -> fastcat.TrainConfig:
    return fastcat.TrainConfig(**{**SETTINGS, **settings})


def process() -> dict[str, Any]:
    """All that holds for the whole process and a run could have changed."""
    backends = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "tf32": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32),
        "search": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "python": random.getstate(),
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "folder": Path.cwd(),
    }


@pytest.mark.slow
def test_training_leaves_the_process_as_it_was(one_thread: None) -> None:
    # other packages draw random numbers and add filters when they are first imported
    fastcat.train(config(out="first"), quiet=True)
    torch.backends.cudnn.allow_tf32 = False
    before = process()
    assert before["threads"] == 1
    fastcat.train(config(out="run"), quiet=True)
    assert process() == before
    fastcat.resume("run", quiet=True)
    assert process() == before


NEWER = ["cuda.matmul.fp32_precision", "fp32_precision", "cudnn.conv.fp32_precision"]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    "setting",
    [
        *(
            pytest.param(f"torch.backends.{name} = 'tf32'", marks=pytest.mark.represented)
            for name in NEWER[1:]
        ),
        f"torch.backends.{NEWER[0]} = 'tf32'",
        "torch.set_float32_matmul_precision('medium')",
        pytest.param("torch.backends.cuda.matmul.allow_tf32 = True", marks=pytest.mark.represented),
        pytest.param("pass", marks=pytest.mark.represented),
    ],
)
def test_however_the_caller_has_set_tf32(setting: str) -> None:
    """Catches reading one of torch's interfaces where another was used, which raises."""
    code = f"""
import torch, fastcat
from tests.harness import tiny
tiny.register()
{setting}
def state():
    backends = torch.backends
    newer = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    found = [backend.fp32_precision == "tf32" for backend in newer]
    for read in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    ):
        # what torch refuses to say before may be anything afterwards
        try:
            found.append(read())
        except RuntimeError:
            found.append(None)
    return found
def same(before):
    return all(old in (None, new) for old, new in zip(before, state(), strict=True))
before = state()
x = torch.rand(4, 1, 8, 8)
fastcat.evaluate(tiny.Tiny(10, 1), [(x, torch.arange(4))], "clean,pgd2", fastcat.ThreatModel())
assert same(before), (state(), before)
fastcat.train(fastcat.TrainConfig(**{SETTINGS | {"epochs": 1}}, out="run"), quiet=True)
assert same(before), (state(), before)
fastcat.load("run", peer=0)
assert same(before), (state(), before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr


def test_a_call_that_fails_leaves_it_too() -> None:
    before = process()
    with pytest.raises(fastcat.InputError):
        fastcat.train(config(batch_size=4000), quiet=True)
    assert process() == before


def test_quiet_lines_go_to_the_logger(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fastcat"):
        fastcat.train(config(out="run"), quiet=True)
    assert capfd.readouterr() == ("", "")
    logged = [record.getMessage() for record in caplog.records if record.name == "fastcat"]
    kept = Path("run/log.txt").read_text().splitlines()
    assert set(kept) <= set(logged)
    assert any(line.startswith("epoch") for line in kept)


@pytest.mark.slow
def test_quiet_over_several_seeds(capfd: pytest.CaptureFixture[str]) -> None:
    fastcat.train(config(out="runs", seeds="0,1"), quiet=True)
    fastcat.resume("runs", quiet=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_on_epoch_gets_the_records_that_are_written() -> None:
    records: list[dict[str, Any]] = []
    fastcat.train(config(out="run"), on_epoch=records.append, quiet=True)
    lines = Path("run/metrics.jsonl").read_text().splitlines()
    assert records == [json.loads(line) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2]


@pytest.mark.slow
def test_on_epoch_over_several_seeds() -> None:
    epochs: list[int] = []
    fastcat.train(
        config(out="runs", seeds="3,4"),
        on_epoch=lambda record: epochs.append(record["epoch"]),
        quiet=True,
    )
    assert epochs == [1, 2, 1, 2]


@pytest.mark.slow
def test_what_on_epoch_raises_ends_a_run_that_can_be_resumed() -> None:
    class Enough(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        raise Enough

    fastcat.train(config(out="whole"), quiet=True)
    with pytest.raises(Enough):
        fastcat.train(config(out="run"), on_epoch=stop, quiet=True)
    later: list[int] = []
    fastcat.resume("run", on_epoch=lambda record: later.append(record["epoch"]), quiet=True)
    assert later == [2]
    name = "peers/0-trades.last.safetensors"
    assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()
