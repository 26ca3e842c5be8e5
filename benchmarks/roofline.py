"""The roofline picture of a benchmark's JSON: python -m benchmarks.roofline bench.json roof.svg

Every convolution by its FLOPs a byte, under the copy's and the matrix product's rates; the whole
steps of the contestants as horizontal lines. Needs matplotlib (pip install matplotlib).
"""

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
        intensity = [row["flop_per_byte"] for row in rows]
        left, right = min(intensity) / 2, max(*intensity, roof / copy) * 2
        axes.plot([left, roof / copy, right], [left * copy, roof, roof], color="black", lw=1)
        axes.annotate("copy", (left, left * copy), fontsize=8)
        axes.annotate("matrix product", (right, roof), ha="right", va="bottom", fontsize=8)
        for name, marker in MARKERS.items():
            chosen = [row for row in rows if row["pass"] == name]
            axes.scatter(
                [row["flop_per_byte"] for row in chosen], [row["tflops"] for row in chosen],
                marker=marker, label=name.replace("_", " "), s=24,
            )  # fmt: skip
        for result in record["results"]:
            if result["what"] == "train" and result["arithmetic"] == precision:
                axes.axhline(result["tflops"], ls=":", lw=1, color="gray")
                axes.annotate(
                    f"step, {result['contestant']}", (right, result["tflops"]),
                    ha="right", va="bottom", fontsize=8, color="gray",
                )  # fmt: skip
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
