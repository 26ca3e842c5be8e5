"""`fastcat eval`: robust accuracy of a run's peers, of one weight file, or of a checkpoint."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from torch import nn

from fastcat.attacks.threat import ThreatModel
from fastcat.config.evaluate import EvalConfig
from fastcat.config.pixels import format_pixels
from fastcat.config.threats import format_length, format_threats, parse_threats
from fastcat.cpus import set_threads
from fastcat.device import make_device
from fastcat.environment import environment
from fastcat.errors import InputError, nearest
from fastcat.evaluation.attack import parse_attacks
from fastcat.evaluation.evaluate import evaluate
from fastcat.files import claimed, write_text
from fastcat.loaders.choose import unchanged_loader
from fastcat.loaders.class_names import by_number, relabelled
from fastcat.loaders.class_order import in_order, numeric_order, order_note
from fastcat.loaders.dataset import Dataset, channel_statistics
from fastcat.loaders.loader import Loader, Sampling
from fastcat.loaders.registry import dataset_names, load_dataset
from fastcat.models import canonical_arch
from fastcat.precision import make_precision
from fastcat.progress import make_console, make_progress, task
from fastcat.report.html import doubts, renew_report, threats_in_words
from fastcat.report.records import PeerEvaluation
from fastcat.report.seeds import is_over_seeds, rows, runs_of, spreads_of, write_record
from fastcat.report.seeds import table as table_of
from fastcat.runs.recognise import recognise
from fastcat.runs.trial import check_network
from fastcat.seeds import derive_seed
from fastcat.weights.file import WeightsInfo, load_weights, outputs_of
from fastcat.weights.foreign import foreign_network

# of whom nothing is known: the radius of nearly every CIFAR paper
EPS = 8 / 255
# training images whose mean and deviation a network may normalise by
STATISTICS_OF = 50_000


def evaluate_run(config: EvalConfig) -> dict[str, Any]:
    """Evaluate the chosen peers one after the other, print a table, and return the JSON record.

    The record is written too. In a folder of several seeds each run is evaluated, and then mean and
    spread are recorded. Raises InputError for weights, data or attacks that cannot be used.
    """
    parse_attacks(config.attacks)
    if is_over_seeds(config.target):
        return evaluate_seeds(config)
    set_threads(None)
    device = make_device(config.device)
    files = find_weights(config.target, config.weights, config.peer)
    if config.arch is not None:
        check_foreign(config)
    peers = [] if config.arch is not None else [load_weights(file) for file in files]
    with reserved(config) as out:
        console = make_console()
        data, data_dir = find_data(config, peers[0][1] if peers else None)
        with task(console, f"reading {data}, once") as progress:
            dataset = load_dataset(data, data_dir, progress)
        as_trained = bool(peers) and numeric_order(dataset.classes) == peers[0][1].classes
        dataset = in_order(dataset, config.class_order or ("number" if as_trained else "text"))
        if config.arch is not None:
            if note := order_note(dataset.classes):
                _note(console, note)
            peers = [foreign_weights(config, dataset, console)]
        for file, (_, info) in zip(files, peers, strict=True):
            dataset = in_its_classes(dataset, file, info, console)
        loader = make_loader(dataset, config, device)
        record: dict[str, Any] = {
            "data": data,
            "data_digest": dataset.digest,
            "split": config.split,
            "restarts": config.restarts,
            "seed": config.seed,
            "precision": "fp32",
            "environment": environment(),
            "peers": {},
        }
        fp32 = make_precision("fp32", device)
        for file, (model, info) in zip(files, peers, strict=True):
            classes = len(dataset.classes)
            check_network(model, f"{file} ({info.arch})", dataset.image_shape, classes, fp32)
        if config.arch is not None:
            statistics = channel_statistics(dataset.train.images[:STATISTICS_OF])
            peers = [recognise(*peers[0], loader, device, statistics, partial(_note, console))]
        for file, (model, info) in zip(files, peers, strict=True):
            if info.data == dataset.name and info.data_digest not in (None, dataset.digest):
                console.print(f"note: {info.peer} was trained on other images of {info.data}")
            entry = evaluate_peer(model, info, loader, config, device, console)
            record["peers"][info.peer] = {"weights": str(file), **entry}
            evaluation = PeerEvaluation.read(record["peers"][info.peer])
            console.print(table(info, dataset.name, config.split, evaluation))
        if out is not None:
            write_text(out, json.dumps(record, indent=2) + "\n")
            console.print(f"written to {out}")
    if config.target.is_dir():
        renew_report(config.target, console.print)
    return record


@contextmanager
def reserved(config: EvalConfig) -> Iterator[Path | None]:
    """The JSON file that will be written; None for a single weight file without --out.

    It is --out, or the first free one of eval/test.json, eval/test-2.json, ... in the run. It is
    made before hours of attacks, not after them, and removed if nothing is written. Raises
    InputError where --out is there already.
    """
    if config.out is None and not config.target.is_dir():
        yield None
        return
    split = config.split
    names = itertools.chain([split], (f"{split}-{i}" for i in itertools.count(2)))
    files = (config.target / "eval" / f"{name}.json" for name in names)
    with claimed(files if config.out is None else [config.out]) as out:
        if out is None:
            raise InputError(f"{config.out} exists already: choose another --out")
        yield out


def evaluate_seeds(config: EvalConfig) -> dict[str, Any]:
    """Evaluate the run of every seed and record how each peer's accuracies spread over them."""
    runs = runs_of(config.target)
    for run in runs.values():
        find_weights(run, config.weights, config.peer)  # before any of them is attacked
    console = make_console()
    with reserved(config) as out:
        assert out is not None
        records = []
        for seed, run in runs.items():
            console.print(f"seed {seed}")
            records.append(evaluate_run(replace(config, target=run, out=None)))
        # what every peer of every seed was evaluated by, in place of the first one's record
        record = dict(records[0])
        entry = next(iter(record.pop("peers").values()))
        record |= {key: entry[key] for key in ("n", "threats")}
        record["seeds"] = list(runs)
        record["spread"] = spreads = spreads_of([_accuracies(one) for one in records])
        write_record(out, record)
        under = threats_in_words(PeerEvaluation.read(entry))
        console.print(f"{entry['n']} {config.split} images, {under}")
        console.print(table_of(rows(f"{len(runs)} seeds, percent", ("", spreads))))
        console.print(f"written to {out}")
    renew_report(config.target, console.print)
    return record


def _accuracies(record: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By peer and attack."""
    return {
        peer: {attack: result["accuracy"] for attack, result in entry["attacks"].items()}
        for peer, entry in record["peers"].items()
    }


def evaluate_peer(
    model: nn.Module,
    info: WeightsInfo,
    loader: Loader,
    config: EvalConfig,
    device: torch.device,
    console: Console,
) -> dict[str, Any]:
    """The record of one peer: which attacks were made on it, and its accuracy under each."""
    threats = threats_of(config, info)
    with make_progress(console) as bar:
        bar.add_task(info.peer, total=loader.size)
        report = evaluate(
            model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            loader,
            config.attacks,
            threats,
            seed=config.seed,
            precision=make_precision("fp32", device),
            after_batch=partial(_advance, bar),
        )
    return {
        "info": asdict(info),
        "threats": [
            {
                "norm": threat.norm,
                "eps": format_length(threat.norm, threat.eps),
                "step_size": format_length(threat.norm, threat.step),
            }
            for threat in threats
        ],
        "restarts": config.restarts,
        **report.to_dict(),
    }


def _advance(bar: Progress, done: int) -> None:
    bar.update(bar.task_ids[0], completed=done)


def find_weights(target: Path, which: str, peer: str) -> list[Path]:
    """The weight files that a target means: itself, or those of a run's chosen peers.

    target: a weight file, or the folder of a run
    which: "best" or "last"; a peer without best weights gives its last
    peer: "all", a number or a name

    Raises InputError where there are none.
    """
    if target.is_file():
        return [target]
    found = (re.fullmatch(r"((\d+)-.+)\.(best|last)\.safetensors", path.name)
             for path in (target / "peers").glob("*.safetensors"))  # fmt: skip
    names = [name for _, name in sorted({(int(m[2]), m[1]) for m in found if m})]
    if not names:
        raise InputError(f"{target} holds no weights: expected a run or a .safetensors file")
    chosen = [name for name in names if peer in ("all", name, name.partition("-")[0])]
    if not chosen:
        raise InputError(f"{target} has no peer {peer!r}: {nearest(peer, names)}")
    files = [target / "peers" / f"{name}.{which}.safetensors" for name in chosen]
    return [
        file if file.exists() else file.with_name(file.name.replace(".best.", ".last."))
        for file in files
    ]


def check_foreign(config: EvalConfig) -> None:
    """Raise InputError where --arch does not belong, or no data are named."""
    if config.target.is_dir():
        raise InputError(f"{config.target} is a run, which knows its networks: leave --arch out")
    if config.data is None:
        raise InputError(f"say which images {config.target} is for: type --data cifar10")


def foreign_weights(
    config: EvalConfig, dataset: Dataset, console: Console
) -> tuple[nn.Module, WeightsInfo]:
    """The network of a checkpoint of others, for the classes and channels of the data.

    What was done to the names is printed, and what the file cannot say and is therefore assumed.
    """
    assert config.arch is not None
    channels = dataset.image_shape[2]
    net, loaded = foreign_network(
        config.target,
        config.arch,
        len(dataset.classes),
        channels,
        config.normalize(),
        config.state,
    )
    for remark in loaded.remarks:
        _note(console, remark)
    normalize = loaded.normalize
    # a radius of linf says nothing of another norm
    norm = "linf" if config.eps is None else config.norm or "linf"
    eps = EPS if config.eps is None else config.eps
    if config.eps is None:
        console.print(f"note: eps {format_pixels(eps)} is assumed; --eps says another")
    info = WeightsInfo(
        peer=config.target.stem,
        arch=canonical_arch(config.arch),
        data=dataset.name,
        classes=dataset.classes,
        channels=channels,
        mean=None if normalize is None else tuple(normalize[0]),
        std=None if normalize is None else tuple(normalize[1]),
        threats=format_threats([ThreatModel(norm=norm, eps=eps)]),
        epoch=0,
        selected="of others",
    )
    return net, info


def _note(console: Console, line: str) -> None:
    console.print(f"note: {line}", markup=False)


def in_its_classes(dataset: Dataset, file: Path, info: WeightsInfo, console: Console) -> Dataset:
    """The data, with labels as the network numbers its classes.

    A note is printed where classes are matched by number. Raises InputError for images or classes
    that the network does not know.
    """
    labels = outputs_of(file, info, dataset)
    for remark in by_number(dataset.classes, dataset.name, info.classes, info.peer):
        _note(console, remark)
    return relabelled(dataset, labels, info.classes)


def find_data(config: EvalConfig, info: WeightsInfo | None) -> tuple[str, Path]:
    """The data set and its folder: --data and --data-dir, or else those of the run.

    A weight file outside of its run knows its data set by name only. Raises InputError for a name
    that means nothing on another machine.
    """
    if info is None:
        return str(config.data), config.data_dir or Path("data")
    trained: dict[str, Any] = {"data": info.data, "data_dir": "data"}
    if config.target.is_dir():
        with suppress(OSError, yaml.YAMLError, ValueError):
            settings = yaml.safe_load((config.target / "config.yaml").read_bytes())
            if isinstance(settings, dict):
                trained |= {key: str(settings.get(key, trained[key])) for key in trained}
    elif config.data is None and info.data not in dataset_names():
        raise InputError(f"say where the images of {info.data!r} are: type --data FOLDER")
    return config.data or trained["data"], config.data_dir or Path(trained["data_dir"])


def make_loader(dataset: Dataset, config: EvalConfig, device: torch.device) -> Loader:
    """The first n images of the split in the seed's order, unchanged.

    Raises InputError when there are not n.
    """
    split = dataset.test if config.split == "test" else dataset.train
    n = len(split) if config.n is None else config.n
    if n > len(split):
        raise InputError(f"n is {n}, but the {config.split} split has {len(split)} images")
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "evaluated"))
    index = torch.randperm(len(split), generator=generator)[:n].sort().values
    sampling = Sampling(index=index, batch_size=config.batch_size)
    return unchanged_loader(dataset, config.split, sampling, device)


def threats_of(config: EvalConfig, info: WeightsInfo) -> list[ThreatModel]:
    """The threat models asked for; what is left open is as the network was trained.

    Raises InputError for a step size where there are several threat models.
    """
    trained = parse_threats(info.threats, ThreatModel(restarts=config.restarts))
    if config.norm is not None:
        trained = tuple(model for model in trained if model.norm == config.norm)
    if config.eps is not None:
        norm = config.norm or trained[0].norm
        trained = (ThreatModel(norm=norm, eps=config.eps, restarts=config.restarts),)
    if not trained:
        raise InputError(f"{info.peer} was not trained under {config.norm}: type --eps too")
    if config.step_size is None:
        return list(trained)
    if len(trained) > 1:
        raise InputError("--step-size is for one attacker: type --norm too")
    return [replace(trained[0], step_size=config.step_size)]


def table(info: WeightsInfo, data: str, split: str, record: PeerEvaluation) -> str:
    """An evaluation of one peer in lines for people."""
    epoch = f", epoch {info.epoch}" if info.epoch else ""
    lines = [
        f"{info.peer}  {info.arch}, {info.selected}{epoch}: {record.n} {split} "
        f"images of {data}, {threats_in_words(record)}"
    ]
    width = max(8, *map(len, record.attacks))
    for name, result in record.attacks.items():
        low, high = result.ci95
        lines.append(
            f"  {name:{width}} {100 * result.accuracy:6.2f}%   "
            f"95% interval {100 * low:5.2f} .. {100 * high:5.2f}"
        )
    lines += [f"note: {doubt}" for doubt in doubts(info.peer, record)]
    return "\n".join(lines)
