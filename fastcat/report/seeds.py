"""One run over several seeds: a folder OUT with the runs OUT/seed-0, OUT/seed-1, ..., the record
OUT/seeds.json of all of them, and how an accuracy spreads over them.
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcat.config.seeds import parse_seeds
from fastcat.errors import InputError
from fastcat.files import write_text

SEEDS_FILE = "seeds.json"


def run_of_seed(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def is_over_seeds(folder: Path) -> bool:
    return (folder / SEEDS_FILE).exists()


def write_record(file: Path, record: dict[str, Any]) -> None:
    """As JSON, with Spread as mappings."""
    write_text(file, json.dumps(record, indent=2, default=asdict) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """What seeds.json holds: "config", the settings, and where all are done "best" and "last".

    Raises InputError when it cannot be read.
    """
    try:
        record = json.loads((folder / SEEDS_FILE).read_text("utf-8"))
        parse_seeds(record["config"]["seeds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SEEDS_FILE} cannot be read: {error!r}") from error
    return record


def runs_of(folder: Path) -> dict[int, Path]:
    """The folder of each seed's run, by seed."""
    seeds = parse_seeds(read_record(folder)["config"]["seeds"])
    return {seed: run_of_seed(folder, seed) for seed in seeds}


@dataclass(frozen=True)
class Spread:
    """How a value spreads over seeds.

    mean, min, max: over the seeds
    std: of the sample (n - 1). None: there is a single seed
    values: one for each seed
    """

    mean: float
    std: float | None
    min: float
    max: float
    values: list[float]


def spread_of(values: Sequence[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, min(values), max(values), list(values))


Spreads = dict[str, dict[str, Spread]]  # by peer and attack


def spreads_of(accuracies: Sequence[Mapping[str, Mapping[str, float]]]) -> Spreads:
    """From the accuracies of each seed, by peer and attack."""
    return {
        peer: {attack: spread_of([one[peer][attack] for one in accuracies]) for attack in attacks}
        for peer, attacks in accuracies[0].items()
    }


def read_spreads(record: Mapping[str, Any], which: str) -> Spreads:
    """The spreads that a JSON record holds under a name; empty where it holds none."""
    return {
        peer: {attack: Spread(**values) for attack, values in attacks.items()}
        for peer, attacks in record.get(which, {}).items()
    }


def rows(title: str, *labelled: tuple[str, Spreads]) -> Iterator[list[str]]:
    """A row of heads, and a row for each attack on each peer.

    title: the first head
    labelled: spreads, each with a label that tells it apart in the first column
    """
    yield [title, "mean", "std", "min .. max"]
    for label, spreads in labelled:
        for peer, attacks in spreads.items():
            for attack, spread in attacks.items():
                std = "-" if spread.std is None else f"{100 * spread.std:.2f}"
                ends = f"{100 * spread.min:.2f} .. {100 * spread.max:.2f}"
                name = " ".join(filter(None, [peer, label, attack]))
                yield [name, f"{100 * spread.mean:.2f}", std, ends]


def table(rows: Iterable[list[str]]) -> str:
    """Lines for people."""
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"{first:{widths[0]}}  "
        + "  ".join(f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        for first, *others in lines
    )
