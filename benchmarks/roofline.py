"""The roofline picture of a benchmark's JSON: python -m benchmarks.roofline bench.json roof.svg

Every convolution by its FLOPs a byte, under the copy's and the matrix product's rates; the whole
steps of the contestants as gray lines. Needs matplotlib (pip install matplotlib).
"""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib import pyplot

MARKERS = {"forward": "o", "backward_input": "s", "backward_weight": "^"}


def plot(record: dict[str, Any], path: Path) -> None:
    layers = record["layers"]
    precisions = list(dict.fromkeys(row["precision"] for row in layers))
    figure, axes_row = pyplot.subplots(
        1, len(precisions), figsize=(6 * len(precisions), 5), squeeze=False
    )
    for axes, precision in zip(axes_row[0], precisions, strict=True):
        rows = [row for row in layers if row["precision"] == precision]
        roof, copy = record["matmul_tflops"][precision], record["copy_tb_per_s"]
        intensity = [roof / copy, *(row["flop_per_byte"] for row in rows)]
        left, right = min(intensity) / 2, max(intensity) * 2
        corners = [left * copy, roof, roof]
        label = "copy, matrix product"
        axes.plot([left, roof / copy, right], corners, color="black", lw=1, label=label)
        for name, marker in MARKERS.items():
            chosen = [row for row in rows if row["pass"] == name]
            axes.scatter(
                [row["flop_per_byte"] for row in chosen], [row["tflops"] for row in chosen],
                marker=marker, label=name.replace("_", " "), s=24,
            )  # fmt: skip
        steps = [
            r for r in record["results"] if r["what"] == "train" and r["arithmetic"] == precision
        ]
        for result, style in zip(steps, itertools.cycle(["--", "-.", ":"]), strict=False):
            label = f"step, {result['contestant']}"
            axes.axhline(result["tflops"], ls=style, lw=1, color="gray", label=label)
        axes.set(
            xscale="log", yscale="log", xlabel="FLOP / byte", ylabel="TFLOP/s", title=precision
        )
        axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m benchmarks.roofline BENCH.json PICTURE.svg")
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
