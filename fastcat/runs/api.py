"""Runs as folders: begin one, continue one, never overwrite one."""

import fcntl
import gc
import itertools
import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastcat.config.seeds import parse_seeds
from fastcat.config.train import TrainConfig
from fastcat.config.yaml_file import to_yaml
from fastcat.cpus import shared_cpus
from fastcat.environment import environment
from fastcat.errors import InputError
from fastcat.files import explained, find_path, remove_leftovers, write_text
from fastcat.loaders.dataset import Dataset
from fastcat.loaders.registry import is_folder
from fastcat.progress import make_console
from fastcat.report.html import renew_report
from fastcat.report.seeds import (
    SEEDS_FILE,
    Spreads,
    is_over_seeds,
    read_record,
    run_of_seed,
    spreads_of,
    write_record,
)
from fastcat.runs.checkpoint import load_last_checkpoint
from fastcat.runs.loop import Loop, OnEpoch
from fastcat.runs.recorder import Recorder
from fastcat.runs.teacher import with_absolute_weights
from fastcat.runs.trainer import Trainer
from fastcat.runtime import restored_settings
from fastcat.stop import Stopped, StopRequest, stop_request


@dataclass(frozen=True)
class RunResult:
    """A finished run's folder, and by peer the last epoch's record and the best validation."""

    out: Path
    peers: dict[str, dict[str, Any]]
    best: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class SeedsResult(RunResult):
    """The finished runs of several seeds; `peers` and `best` hold mean accuracies alone.

    runs: the result of each seed's run
    judged_on: images of the accuracies, "val" or "test"
    last_spread, best_spread: the same accuracies with their spread over the seeds
    """

    runs: dict[int, RunResult]
    judged_on: str
    last_spread: Spreads
    best_spread: Spreads


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Within it no second process uses the run; the lock ends with this process at the latest."""
    with explained(run):
        handle = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{run} is in use by another process: wait for it or stop it"
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)


def _claim(config: TrainConfig) -> Path:
    """Make the folder of a run: `config.out`, or else the first of runs/digits-trades-alp,
    runs/digits-trades-alp-2, ... that is not there, also where several processes ask at once.
    """
    if config.out is not None:
        with explained(config.out):
            config.out.mkdir(parents=True, exist_ok=True)
        return config.out
    runs = Path("runs")
    with explained(runs):
        runs.mkdir(exist_ok=True)
    stem = _short_name(config)
    for name in itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2))):
        with explained(runs / name), suppress(FileExistsError):
            (runs / name).mkdir()
            break
    return runs / name


def _short_name(config: TrainConfig) -> str:
    """The data and the methods, as long as a file system takes, with room for a number."""
    data = Path(os.path.abspath(config.data)).name or "data"
    name = "-".join([data, *(spec.method for spec in config.peer_specs())])
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return name


def _refuse_existing(out: Path) -> None:
    """Raise InputError for a folder with anything in it: an existing run is never overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    resumable = is_over_seeds(out) or (out / "checkpoints" / "last.pt").exists()
    remedy = f"type: fastcat resume {shlex.quote(str(out))}" if resumable else "remove it"
    raise InputError(f"{out} exists already: choose another --out, or {remedy}")


def with_absolute_paths(config: TrainConfig, dataset: Dataset | None = None) -> TrainConfig:
    """The settings of a run that can be resumed and evaluated from another directory.

    dataset: in place of what `config.data` names
    """
    out = None if config.out is None else find_path(str(config.out))
    data, extra = config.data, config.extra
    if dataset is not None:
        data = dataset.name
    elif is_folder(data):
        data = str(find_path(data).absolute())
    if extra is not None and is_folder(str(extra)):
        extra = find_path(str(extra)).absolute()
    data_dir = find_path(str(config.data_dir)).absolute()
    peers = with_absolute_weights(config.peers)
    return replace(config, out=out, data=data, data_dir=data_dir, extra=extra, peers=peers)


@restored_settings()
def train(
    config: TrainConfig,
    dataset: Dataset | None = None,
    *,
    on_epoch: OnEpoch | None = None,
    quiet: bool = False,
) -> RunResult:
    """Train the peers of `config` in a new folder and return where they ended.

    With `config.seeds` there is a run a seed, one after the other, and a SeedsResult. Settings of
    torch that hold for the whole process, random states among them, are afterwards as before.

    dataset: of `fastcat.from_items`, in place of what `config.data` names
    on_epoch: called after each epoch, when all of it is saved, with its record: the line of
        metrics.jsonl as a dict. What it raises ends the run, which `resume` continues
    quiet: print nothing; lines go to the logger "fastcat" at level INFO

    Raises InputError for settings, data or a folder that cannot be used, and for a loss that is no
    longer finite or another collapse, as `--on-collapse` says; Stopped after Ctrl-C, SIGTERM or
    SIGHUP, when all is saved.
    """
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"the settings are {config!r:.40}, expected a TrainConfig: "
            "type fastcat.TrainConfig(peers='trades,alp')"
        )
    _check_dataset(dataset)
    config = with_absolute_paths(config, dataset)
    if config.out is not None:
        _refuse_existing(config.out)
    if config.seeds is not None:
        return _train_seeds(config, dataset, on_epoch, quiet)
    console = make_console(quiet)
    trainer = Trainer(config, dataset, console)
    out = _claim(config)
    trainer.config = replace(trainer.config, out=out)
    with _locked(out), stop_request() as request:
        _refuse_existing(out)  # another process may have begun while the data were read
        with explained(out):
            for folder in ("checkpoints", "peers"):
                (out / folder).mkdir()
        write_text(out / "config.yaml", to_yaml(trainer.config))
        write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        trainer.save(out)
        return _run(trainer, out, request, console, on_epoch)


def _check_dataset(dataset: Any) -> None:
    """Raise InputError for what is neither None nor of `fastcat.from_items`."""
    if not (dataset is None or isinstance(dataset, Dataset)):
        raise InputError(
            f"the data set is a {type(dataset).__name__}, expected one of (image, label) data "
            "sets: type fastcat.from_items(train, test)"
        )


def _of_seed(config: TrainConfig, out: Path, seed: int) -> TrainConfig:
    """The settings of one run among those in `out`."""
    return replace(config, out=run_of_seed(out, seed), seed=seed, seeds=None)


def _train_seeds(
    config: TrainConfig, dataset: Dataset | None, on_epoch: OnEpoch | None, quiet: bool
) -> SeedsResult:
    first, *_ = parse_seeds(config.seeds or "")
    # refuses what cannot be trained while there is no folder, and settles what "auto" means
    settled = Trainer(replace(config, seed=first, seeds=None), dataset, make_console(quiet)).config
    out = _claim(config)
    config = replace(settled, out=out, seed=config.seed, seeds=config.seeds)
    with _locked(out):
        _refuse_existing(out)
        write_text(out / "config.yaml", to_yaml(config))
        _write_record(config, out)
        return _run_seeds(config, out, dataset, on_epoch, quiet)


def _run_seeds(
    config: TrainConfig,
    out: Path,
    dataset: Dataset | None,
    on_epoch: OnEpoch | None,
    quiet: bool,
) -> SeedsResult:
    """Bring the run of every seed to its end, from wherever it stands, and sum them up."""
    runs: dict[int, RunResult] = {}
    console = make_console(quiet)
    for seed in parse_seeds(config.seeds or ""):
        run = run_of_seed(out, seed)
        gc.collect()  # a trainer refers to itself in places, and would fill the device
        try:
            if not run.exists():
                runs[seed] = train(
                    _of_seed(config, out, seed), dataset, on_epoch=on_epoch, quiet=quiet
                )
            else:
                runs[seed] = _finished(run) or resume(run, dataset, on_epoch=on_epoch, quiet=quiet)
        except (Stopped, KeyboardInterrupt):
            console.print(f"go on with all seeds: fastcat resume {shlex.quote(str(out))}")
            raise
    last = _spreads([result.peers for result in runs.values()])
    best = _spreads([result.best for result in runs.values()])
    _write_record(config, out, best=best, last=last)
    renew_report(out, console.print)
    return SeedsResult(out, _means(last), _means(best), runs, _judged_on(config), last, best)


def _judged_on(config: TrainConfig) -> str:
    return "test" if config.select_on == "test" else "val"


def _write_record(config: TrainConfig, out: Path, **spreads: Spreads) -> None:
    record = {"judged_on": _judged_on(config), **spreads, "config": config.to_dict()}
    write_record(out / SEEDS_FILE, record)


def _spreads(records: Sequence[dict[str, dict[str, Any]]]) -> Spreads:
    """Of the accuracies in each seed's records of the peers."""
    return spreads_of(
        [{peer: entry["accuracy"] for peer, entry in record.items()} for record in records]
    )


def _means(spreads: Spreads) -> dict[str, dict[str, Any]]:
    return {
        peer: {"accuracy": {attack: spread.mean for attack, spread in attacks.items()}}
        for peer, attacks in spreads.items()
    }


def _finished(run: Path) -> RunResult | None:
    """The result of a run that has reached its last epoch; None for a run that has not."""
    if not (run / "checkpoints" / "last.pt").exists():
        return None
    state, _ = load_last_checkpoint(run)
    with _fitting(run):
        if state["epoch"] < state["config"]["epochs"]:
            return None
        return RunResult(run, state["last_record"]["peers"], state["best"])


@contextmanager
def _fitting(run: Path) -> Iterator[None]:
    """Turn what goes wrong with a checkpoint of other content into one sentence (InputError)."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the checkpoint of {run} does not fit this version of fastcat: {reason}"
        ) from error


@restored_settings()
def resume(
    run: Path | str,
    dataset: Dataset | None = None,
    *,
    on_epoch: OnEpoch | None = None,
    quiet: bool = False,
) -> RunResult:
    """Continue a run where its last checkpoint stands; a finished run is returned as it is.

    In a folder of several seeds the finished ones are left alone, those missing begin.

    run: its folder
    dataset: that which `train` was given, if it was
    on_epoch, quiet: as in `train`

    Raises what `train` raises, and InputError for a folder without a usable checkpoint.
    """
    _check_dataset(dataset)
    if not isinstance(run, str | os.PathLike):
        raise InputError(f"the run is {run!r:.40}, expected its folder, as 'runs/first'")
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run} is not a run: there is no such folder")
    if is_over_seeds(run):
        with _locked(run):
            with _fitting(run):
                config = TrainConfig.from_dict({**read_record(run)["config"], "out": run})
            remove_leftovers(run)
            return _run_seeds(config, run, dataset, on_epoch, quiet)
    with _locked(run), stop_request() as request:
        state, remark = load_last_checkpoint(run)
        with _fitting(run):
            config = TrainConfig.from_dict({**state["config"], "out": run})
        console = make_console(quiet)
        trainer = Trainer(config, dataset, console)
        with _fitting(run):
            trainer.load_state_dict(state)
        remove_leftovers(run)
        return _run(trainer, run, request, console, on_epoch, remark)


@shared_cpus()
def _run(
    trainer: Trainer,
    run: Path,
    request: StopRequest,
    console: Console,
    on_epoch: OnEpoch | None,
    remark: str | None = None,
) -> RunResult:
    steps = trainer.config.epochs * trainer.epoch_steps
    with Recorder(run, steps, console) as recorder:
        if remark:
            recorder.line(remark)
        recorder.forget_after(trainer.epoch, trainer.steps_done)
        try:
            Loop(trainer, run, recorder, request, on_epoch).follow()
        except Stopped as stopped:
            recorder.line(
                f"stopped by {stopped} in epoch {trainer.epoch + 1}/{trainer.config.epochs} "
                f"after step {trainer.step}/{trainer.epoch_steps}; "
                f"go on with: fastcat resume {shlex.quote(str(run))}"
            )
            raise
    return RunResult(run, trainer.last_record["peers"], trainer.validation.best)
