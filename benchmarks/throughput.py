"""`fastcat bench`: the plain loops of the papers' code and ours, alternately, in one process.

All train on the same random images. After a warm-up they take turns, of which the first step is not
timed; medians with the spread go to the screen and, with versions and hardware, into a JSON file.
FLOPs are counted in an eager step, those that Winograd's convolutions save among them, and set
beside the rate of a plain matrix product measured in the same run.
"""

import itertools
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fastcat.benchmarks.config import BenchConfig
from fastcat.benchmarks.contestants import (
    CHANNELS,
    CLASSES,
    SIDE,
    Ours,
    arithmetic_of,
    contestants_for,
    make_contestant,
    make_network,
    opponents_for,
    set_arithmetic,
)
from fastcat.benchmarks.layers import measure_layers
from fastcat.benchmarks.measure import (
    PeakMemory,
    busy_processes,
    copy_tb_per_s,
    flop_per_image,
    matmul_tflops,
    milliseconds,
    synchronize,
)
from fastcat.benchmarks.methods import METHODS, parse_methods, typed
from fastcat.benchmarks.tables import (
    BESIDE_COLUMNS,
    COLUMNS,
    LAYER_COLUMNS,
    METHOD_COLUMNS,
    table,
)
from fastcat.config.peers import parse_peers
from fastcat.cpus import set_threads, shared_cpus
from fastcat.device import make_device
from fastcat.environment import environment
from fastcat.errors import InputError
from fastcat.files import claimed, write_text
from fastcat.precision import make_precision
from fastcat.runs.trial import check_network
from fastcat.runtime import without_search


def race(
    names: list[str],
    arch: str,
    peers: str,
    collab: str,
    batch: int,
    what: str,
    config: BenchConfig,
    device: torch.device,
    matmul: dict[str, float],
) -> list[dict[str, Any]]:
    """One result for each contestant, on one team and batch size."""
    specs = list(parse_peers(peers, arch))
    steps = config.steps or (10 if device.type == "cuda" else 1)
    turns: dict[str, Callable[[], object]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        eager = name if "/" not in name else f"{name.partition('/')[0]}/eager"
        fixed = {} if "/" in name else {"workers": 0}
        counted = make_contestant(eager, specs, 2, device, collab, **fixed)
        with without_search():
            flop = flop_per_image(getattr(counted, what), 2)
        memory = PeakMemory(device)
        contestant = make_contestant(name, specs, batch, device, collab)
        turns[name] = getattr(contestant, what)
        # the second shows the memory of a step once compilers and searches are done
        turns[name]()
        turns[name]()
        synchronize(device)
        engine = contestant.engine.name if isinstance(contestant, Ours) else ""
        results[name] = {
            "what": what,
            "arch": arch,
            "peers": typed(peers, collab),
            "batch_size": batch,
            "contestant": name,
            "arithmetic": arithmetic_of(name, device),
            "engine": engine,
            "gflop_per_image": flop / 1e9,
            "peak_memory_mib": memory.mib(),
        }
    timed: list[dict[str, Any]] = []
    quiet: dict[str, float] = {}
    for count in map(int, config.beside.split(",")):
        with busy_processes(count):
            times = _take_turns(turns, steps, config.repetitions, device)
        for name, result in results.items():
            ms = median(times[name])
            tflops = result["gflop_per_image"] * batch / ms  # GFLOP a millisecond
            result = result | {
                "beside": count,
                "ms": ms,
                "ms_low": min(times[name]),
                "ms_high": max(times[name]),
                "images_per_second": 1000 * batch / ms,
                "seconds_per_epoch": config.images / batch * ms / 1000,
                "tflops": tflops,
                "share_of_matmul": tflops / matmul[arithmetic_of(name, device)],
            }
            if "plain" in times:
                turns_apart = [a / b for a, b in zip(times["plain"], times[name], strict=True)]
                result |= {
                    "plain_ms": median(times["plain"]),
                    "speedup": median(times["plain"]) / ms,
                    "speedup_low": min(turns_apart),
                    "speedup_high": max(turns_apart),
                }
            if not count:
                quiet[name] = ms
            if name in quiet:
                result["slowdown"] = ms / quiet[name]
            timed.append(result)
    return timed


def _take_turns(
    turns: dict[str, Callable[[], object]], steps: int, repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of a step, of each contestant in each of its turns."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repetitions):
        for name, turn in turns.items():
            set_arithmetic(name, device)
            # ours waits as it does in a run, the papers' loops as torch does
            with shared_cpus() if "/" in name else nullcontext():
                # caches and freed memory are now the others'
                turn()
                times[name].append(milliseconds(turn, steps, device))
    return times


def compared(results: list[dict[str, Any]], path: Path) -> str:
    """The change of each result since an earlier file. Raises InputError for other files."""
    keys = ("what", "arch", "peers", "batch_size", "contestant")

    def key_of(result: dict[str, Any]) -> tuple[Any, ...]:
        # older files know no busy machine
        return (*(result[key] for key in keys), result.get("beside", 0))

    try:
        earlier = {key_of(r): r["ms"] for r in json.loads(path.read_text())["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot compare with {path}: it is no file of `fastcat bench`") from error
    lines = []
    for result in results:
        key = key_of(result)
        name = " ".join(map(str, key[:-1])) + (f" beside {key[-1]}" if key[-1] else "")
        if key in earlier:
            change = result["ms"] / earlier[key] - 1
            lines.append(f"{name}: {earlier[key]:.1f} -> {result['ms']:.1f} ms, {change:+.1%}")
        else:
            lines.append(f"{name}: not in {path}")
    return "\n".join(lines)


def check_architectures(config: BenchConfig) -> None:
    """Raise InputError for a network that does not fit the images, before hours are spent."""
    specs = [
        spec
        for arch, peers in itertools.product(config.arch.split(","), config.peers.split(";"))
        for spec in parse_peers(peers, arch)
    ]
    fp32 = make_precision("fp32", torch.device("cpu"))
    for arch in sorted({spec.arch for spec in specs}):
        check_network(
            make_network(0, arch), arch, (SIDE, SIDE, CHANNELS), CLASSES, fp32, last_batch=2
        )


def bench(config: BenchConfig) -> dict[str, Any]:
    """Run all races, print their tables, write the JSON file and return what it holds."""
    stem = time.strftime("bench-%Y%m%d-%H%M%S")
    names = itertools.chain([stem], (f"{stem}-{i}" for i in itertools.count(2)))
    new = (Path(f"{name}.json") for name in names)
    # now, before hours are spent; a file of --out that is there already is replaced
    with claimed([config.out] if config.out is not None else new) as free:
        out = free or config.out
        assert out is not None
        return _bench(config, out)


def _bench(config: BenchConfig, out: Path) -> dict[str, Any]:
    set_threads(config.threads)
    device = make_device(config.device)
    names = contestants_for(config.contestants, device)
    opponents = opponents_for(config.contestants, device)
    if config.compare is not None:
        compared([], config.compare)  # read before hours are spent
    whats = config.what.split(",")
    racing = {*names, *opponents} if "methods" in whats else set(names)
    if whats != ["loaders"]:
        check_architectures(config)
    precisions = sorted({arithmetic_of(name, device) for name in racing})
    matmul = {precision: matmul_tflops(precision, device) for precision in precisions}
    rates = ", ".join(f"{precision} {rate:.3g} TFLOP/s" for precision, rate in matmul.items())
    copy = copy_tb_per_s(device)
    print(f"on this {device.type}: matrix products {rates}; copy {copy:.3g} TB/s")
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "environment": environment(),
        "settings": {name: str(value) for name, value in asdict(config).items()},
        "matmul_tflops": matmul,
        "copy_tb_per_s": copy,
        "results": [],
        "layers": [],
        "loaders": [],
    }
    if "loaders" in whats:
        # nothing else here needs what reads image files
        from fastcat.benchmarks.loaders import COLUMNS as LOADER_COLUMNS
        from fastcat.benchmarks.loaders import measure_loaders

        for batch in map(int, config.batch_size.split(",")):
            rows = measure_loaders(config.data, batch, config.repetitions, device)
            height, width, channels = rows[0]["shape"]
            print(
                f"\nloaders: epochs of {rows[0]['images']} images, {channels}x{height}x{width}, "
                f"batch {batch}"
            )
            print(table(rows, LOADER_COLUMNS))
            record["loaders"] += rows
            write_text(out, json.dumps(record, indent=2) + "\n")
    for arch, batch in itertools.product(
        config.arch.split(","), map(int, config.batch_size.split(","))
    ):
        place = f"on {arch}, batch {batch}, {CHANNELS}x{SIDE}x{SIDE}"
        timed = [what for what in whats if what in ("train", "eval")]
        for peers, what in itertools.product(config.peers.split(";"), timed):
            print(f"\n{what}: {typed(peers, config.collab)} {place}")
            results = race(names, arch, peers, config.collab, batch, what, config, device, matmul)
            print(table(results, COLUMNS if config.beside == "0" else BESIDE_COLUMNS))
            record["results"] += results
            # after each race, so that an interruption loses only the race under way
            write_text(out, json.dumps(record, indent=2) + "\n")
        if "methods" in whats:
            print(f"\nmethods {place}")
            rows = []
            for name in parse_methods(config.methods):
                method = METHODS[name]
                results = race(
                    opponents, arch, method.peers, method.collab, batch, "train", config, device,
                    matmul,
                )  # fmt: skip
                results = [{"method": name, **result} for result in results]
                record["results"] += results
                write_text(out, json.dumps(record, indent=2) + "\n")
                rows += [result for result in results if result["contestant"] != "plain"]
            print(table(rows, METHOD_COLUMNS))
        if "layers" in whats:
            for precision in matmul:
                print(f"\nconvolutions of {arch} alone, batch {batch}, {precision}")
                set_arithmetic(f"{precision}/eager", device)
                layers = measure_layers(arch, precision, batch, device, SIDE)
                print(table(layers, LAYER_COLUMNS))
                record["layers"] += layers
            write_text(out, json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {out}")
    if config.compare is not None:
        print(f"\nsince {config.compare}:\n{compared(record['results'], config.compare)}")
    return record
