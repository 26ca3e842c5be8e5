"""Processes that read data sets item by item: how many, what they can be given, when one dies."""

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.loaders.backends import ffcv
from fastcat.loaders.choose import make_loader, unchanged_loader
from fastcat.loaders.items import from_items
from fastcat.loaders.loader import Sampling
from fastcat.runs.trainer import Trainer
from tests.harness import tiny
from tests.harness.random_images import CPU, random_dataset

SAMPLING = Sampling(index=torch.arange(12), batch_size=4)


class Items:
    """Twelve images in three classes, and something that the data set holds besides."""

    def __init__(self, held: object = None) -> None:
        self.held = held

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return np.full((8, 8, 3), row, np.uint8), row % 3


def make(held: object = None, workers: int | None = None) -> object:
    dataset = from_items(Items(held), Items(held), classes="abc")
    return make_loader("torch", dataset, "train", SAMPLING, CPU, Path(), workers)


@pytest.fixture
def spawning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where processes are not forked: on macOS, and with Python 3.14 on Linux."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")


@pytest.mark.usefixtures("spawning")
@pytest.mark.parametrize("workers", [None, 1])
@pytest.mark.parametrize("kind", ["lambda", "lock", "open file"])
def test_what_cannot_be_given_to_processes_is_refused_before_a_run(
    kind: str, workers: int | None
) -> None:
    with Path(__file__).open() as file:
        held = {"lambda": lambda image: image, "lock": threading.Lock(), "open file": file}[kind]
        with pytest.raises(InputError, match=r"given to worker processes \(.+\): type --workers 0"):
            make(held, workers)
        make(held, workers=0)


@pytest.mark.usefixtures("spawning")
def test_what_can_be_given_to_processes_is_taken() -> None:
    make("text")


def test_forked_processes_take_what_their_parent_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    make(lambda image: image)


def test_workers_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches one of training and monitor that goes without, and arrays that get processes."""
    asked: list[int] = []
    monkeypatch.setattr(
        "fastcat.loaders.backends.torch.item_reader",
        lambda split, workers: asked.append(workers),
    )
    make(workers=3)
    make(workers=0)
    make_loader("torch", random_dataset(), "train", SAMPLING, CPU, Path(), 2)
    make_loader("torch", random_dataset(), "train", SAMPLING, CPU, Path())
    dataset = from_items(Items(), Items(), classes="abc")
    unchanged_loader(dataset, "test", SAMPLING, CPU, 5)
    assert asked == [3, 0, 2, 0, 5]


def test_a_run_hands_on_how_many_workers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def note(*arguments: object) -> object:
        asked.append(arguments[-1])  # type: ignore[arg-type]
        return make_loader(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("fastcat.runs.trainer.make_loader", note)
    monkeypatch.setattr("fastcat.loaders.choose.make_loader", note)
    tiny.register()
    config = TrainConfig(arch="tiny", peers="at", batch_size=4, val_size=4, eps=0.1, workers=0)
    Trainer(config, from_items(Items(), Items(), classes="abc"))
    assert asked == [0, 0]


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(InputError, match="workers is -1, expected at least 0"):
        TrainConfig(workers=-1)


@pytest.mark.parametrize(("workers", "threads"), [(None, 2), (0, 1), (1, 1)])
def test_ffcv_decodes_with_as_many_threads(
    workers: int | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ffcv", reason="FFCV is not installed", exc_type=ImportError)
    asked = []
    monkeypatch.setattr("ffcv.loader.Loader", lambda *_, **form: asked.append(form["num_workers"]))
    monkeypatch.setattr("numba.config.NUMBA_NUM_THREADS", 2)
    monkeypatch.setattr(ffcv.torch, "get_num_threads", lambda: 2)
    make_loader("ffcv", random_dataset(), "train", SAMPLING, CPU, tmp_path, workers)
    assert asked == [threads]


DYING = """
import os, signal
import numpy as np, torch
from pathlib import Path
from fastcat.errors import InputError
from fastcat.loaders.choose import make_loader
from fastcat.loaders.items import from_items
from fastcat.loaders.loader import Sampling

class Items:
    def __len__(self):
        return 64
    def __getitem__(self, row):
        if row == 40 and os.getpid() != PARENT:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((8, 8, 3), row, np.uint8), row % 3

PARENT = os.getpid()
data = from_items(Items(), Items(), classes="abc")
sampling = Sampling(index=torch.arange(64), batch_size=4)
loader = make_loader("torch", data, "train", sampling, torch.device("cpu"), Path(), 2)
seen = 0
try:
    for batch in loader:
        seen += len(batch.y)
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL, "torch would interrupt a step"
except InputError as error:
    print(seen, error)
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_worker_that_dies_ends_the_epoch_with_a_sentence() -> None:
    """In a process of its own, whose main thread torch may not interrupt either."""
    done = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    seen, _, text = done.stdout.partition(" ")
    assert int(seen) <= 40  # what it had read before goes with it, if nobody has fetched it
    assert text.startswith("a process that reads images died (")
    assert "--workers 0" in text


class Failing(Items):
    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        if row == 7:
            raise FileNotFoundError("image 7 is gone")
        return super().__getitem__(row)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_data_set_raises_is_no_death(workers: int) -> None:
    dataset = from_items(Items(), Items(), classes="abc")
    dataset.train.images.items = Failing()
    loader = make_loader("torch", dataset, "train", SAMPLING, CPU, Path(), workers)
    with pytest.raises(FileNotFoundError, match="image 7 is gone"):
        list(loader)
