"""Tables of measured results as Markdown, made from benchmarks/results/*.json and nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# by the name of a contestant in the JSON, those of the README
CONTESTANTS = {
    "plain": "the papers' loop, float32",
    "mixed": "the papers' loop, mixed precision, channels-last",
    "fp32/winograd": "fastcat, float32",
    "bf16/winograd": "fastcat, bfloat16",
}

# the smaller batch has a few methods more
FILES_OF_METHODS = ("cpu-methods-32", "cpu-methods")


def read(name: str) -> dict[str, Any]:
    """The record benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def machine(record: dict[str, Any]) -> str:
    """What a record was measured on and when, in a line."""
    environment = record["environment"]
    return (
        f"CPU with {environment['cpu_threads']} cores ({environment['cpu_capability']}), "
        f"torch {environment['packages']['torch']}, {record['date']}"
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers, aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def speed() -> str:
    """CAT's training step, briefly: the table of the README."""
    record = read("cpu-resnet18")
    rows = [
        [
            CONTESTANTS[r["contestant"]],
            f"{r['ms'] / 1000:.1f} s",
            f"{r['seconds_per_epoch'] / 3600:.1f} h",
            f"{r['speedup']:.2f}x",
        ]
        for r in record["results"]
        if r["contestant"] in CONTESTANTS
    ]
    size = record["settings"]["batch_size"]
    head = [
        f"CAT, two ResNet-18, batch {size}, PGD-10, 3x32x32",
        "a step",
        f"{int(record['settings']['images']):,} images".replace(",", " "),
        "speed-up",
    ]
    return f"{markdown(head, rows)}\n\n{machine(record)}."


def contestants() -> str:
    """CAT's training step in full."""
    record = read("cpu-resnet18")
    rows = [
        [
            f"`{r['contestant']}`",
            f"{r['ms']:.0f} ({r['ms_low']:.0f} to {r['ms_high']:.0f})",
            f"{r['images_per_second']:.2f}",
            f"{r['seconds_per_epoch']:.0f}",
            f"{r['gflop_per_image']:.1f}",
            f"{r['tflops']:.3f}",
            f"{r['share_of_matmul']:.0%}",
            f"{r['peak_memory_mib']:.0f}",
            f"{r['speedup']:.2f}x",
        ]
        for r in record["results"]
    ]
    head = "contestant|ms a step (low to high)|images/s|s an epoch|GFLOP an image|TFLOP/s"
    head += "|of the matrix product|peak MiB|speed"
    return f"{machine(record)}.\n\n{markdown(head.split('|'), rows)}"


def races(name: str) -> list[dict[str, Any]]:
    """Each method against the loop of its own paper: what fastcat's side of the race measured."""
    return [r for r in read(name)["results"] if r["contestant"] != "plain"]


def methods() -> str:
    """Each method against the loop of its own paper, at two sizes of a batch."""
    by_batch = {
        read(name)["settings"]["batch_size"]: {r["method"]: r for r in races(name)}
        for name in FILES_OF_METHODS
    }
    everything = {method: r for races_ in by_batch.values() for method, r in races_.items()}
    rows = []
    for method, race in everything.items():
        cells = [f"`{race['peers']}`"]
        for results in by_batch.values():
            r = results.get(method)
            cells += (
                [f"{r['plain_ms']:.0f}", f"{r['ms']:.0f}", f"{r['speedup']:.2f}x"]
                if r
                else 3 * ["-"]
            )
        rows.append([method, *cells])
    head = ["method", "as typed in `--peers`"]
    for size in by_batch:
        head += [f"batch {size}: paper's loop, ms", "fastcat, ms", "speed"]
    table = markdown(head, rows).replace("| --- | ---: |", "| --- | --- |", 1)
    return f"{machine(read(FILES_OF_METHODS[0]))}.\n\n{table}"


def beside() -> str:
    """Steps beside other busy processes, before threads slept and after."""
    before, after = read("cpu-beside-spinning"), read("cpu-beside")

    def cell(record: dict[str, Any], contestant: str, others: int) -> str:
        (r,) = (
            r for r in record["results"] if r["contestant"] == contestant and r["beside"] == others
        )
        return f"{r['ms']:.0f} ms" + (f", {r['slowdown']:.2f}x" if others else "")

    columns = [
        (after, "plain"),
        (before, "fp32/eager"),
        (after, "fp32/eager"),
        (before, "fp32/winograd"),
        (after, "fp32/winograd"),
    ]
    rows = [
        [str(n), *(cell(record, contestant, n) for record, contestant in columns)]
        for n in sorted({r["beside"] for r in after["results"]})
    ]
    head = ["beside", "plain", "fp32/eager before", "after", "fp32/winograd before", "after"]
    return f"{machine(after)}.\n\n{markdown(head, rows)}"


def loaders() -> str:
    """Images a second of every loader."""
    record = read("cpu-loaders")
    rows = [
        [
            r["contestant"],
            f"{r['images_per_second']:.0f}",
            f"{r['of_ffcv']:.0%}",
        ]
        for r in record["loaders"]
    ]
    return f"{machine(record)}.\n\n{markdown(['loader', 'images/s', 'of FFCV'], rows)}"


TABLES = {
    "speed": speed,
    "contestants": contestants,
    "methods": methods,
    "beside": beside,
    "loaders": loaders,
}
