"""Runs as folders: begin one, continue one, never overwrite one."""

import fcntl
import itertools
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastcat.checkpoint import load_last_checkpoint
from fastcat.config import TrainConfig, to_yaml
from fastcat.errors import InputError
from fastcat.files import explained, remove_leftovers, write_text
from fastcat.loaders.dataset import Dataset
from fastcat.loaders.registry import is_folder, load_dataset
from fastcat.progress import make_console, task
from fastcat.recorder import Recorder, environment
from fastcat.stop import Stopped
from fastcat.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """A finished run's folder, and by peer the last epoch's record and the best validation."""

    out: Path
    peers: dict[str, dict[str, Any]]
    best: dict[str, dict[str, Any]]


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep a second process out of the run."""
    handle = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(f"{run} is in use by another process: wait for it or stop it") from error
    finally:
        os.close(handle)


def _free_folder(config: TrainConfig) -> Path:
    """The first of runs/digits-trades-alp, runs/digits-trades-alp-2, ... that is free."""
    peers = "-".join(spec.method for spec in config.peer_specs())
    stem = f"{Path(config.data).name}-{peers}"
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def train(config: TrainConfig) -> RunResult:
    """Train the peers of `config` in a new folder and return where they ended.

    Raises InputError for settings, data or a folder that cannot be used, and for a loss that is
    no longer finite; Stopped after Ctrl-C or SIGTERM, when all is saved.
    """
    out = config.out or _free_folder(config)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"{out} exists already: choose another --out, or type: fastcat resume {out}"
        )
    # a run can be resumed and judged from another directory
    data = str(Path(config.data).expanduser().absolute()) if is_folder(config.data) else config.data
    config = replace(config, out=out, data=data, data_dir=config.data_dir.absolute())
    trainer = Trainer(config, _load_data(config))
    with explained(out):
        for folder in ("checkpoints", "peers"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    with _locked(out):
        write_text(out / "config.yaml", to_yaml(config))
        write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        trainer.save(out)
        with Recorder(out, config.epochs * len(trainer.loader)) as recorder:
            return _run(trainer, out, recorder)


def resume(run: Path) -> RunResult:
    """Continue a run where its last checkpoint stands; a finished run is returned as it is.

    Raises what `train` raises, and InputError for a folder without a usable checkpoint.
    """
    state, remark = load_last_checkpoint(run)
    config = TrainConfig.from_dict({**state["config"], "out": run})
    with _locked(run):
        trainer = Trainer(config, _load_data(config))
        trainer.load_state_dict(state)
        remove_leftovers(run)
        with Recorder(run, config.epochs * len(trainer.loader)) as recorder:
            if remark:
                recorder.line(remark)
            recorder.forget_after(trainer.epoch, trainer.steps_done)
            return _run(trainer, run, recorder)


def _load_data(config: TrainConfig) -> Dataset:
    with task(make_console(), f"reading {config.data}, once") as progress:
        return load_dataset(config.data, config.data_dir, progress)


def _run(trainer: Trainer, run: Path, recorder: Recorder) -> RunResult:
    try:
        trainer.run(run, recorder)
    except Stopped as stopped:
        recorder.line(
            f"stopped by {stopped} in epoch {trainer.epoch + 1}/{trainer.config.epochs} "
            f"after batch {trainer.batch}/{len(trainer.loader)}; "
            f"go on with: fastcat resume {shlex.quote(str(run))}"
        )
        raise
    return RunResult(run, trainer.last_record["peers"], trainer.best)
