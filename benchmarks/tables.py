"""The tables that `fastcat bench` prints."""

from collections.abc import Sequence
from typing import Any

COLUMNS = (
    ("contestant", "{contestant}"),
    ("ms/step", "{ms:.1f}"),
    ("low..high", "{ms_low:.1f}..{ms_high:.1f}"),
    ("images/s", "{images_per_second:.1f}"),
    ("s/epoch", "{seconds_per_epoch:.1f}"),
    ("peak MiB", "{peak_memory_mib:.0f}"),
    ("GFLOP/image", "{gflop_per_image:.1f}"),
    ("TFLOP/s", "{tflops:.3f}"),
    ("of matmul", "{share_of_matmul:.0%}"),
    ("speedup", "{speedup:.2f}x"),
)

BESIDE_COLUMNS = (
    ("beside", "{beside}"),
    *(column for column in COLUMNS if column[0] in ("contestant", "ms/step", "low..high")),
    ("of the quiet step", "{slowdown:.2f}x"),
    ("speedup", "{speedup:.2f}x"),
)

METHOD_COLUMNS = (
    ("method", "{method}"),
    ("peers", "{peers}"),
    ("contestant", "{contestant}"),
    ("reference ms/step", "{plain_ms:.1f}"),
    ("ms/step", "{ms:.1f}"),
    ("speedup", "{speedup:.2f}x"),
    ("low..high", "{speedup_low:.2f}..{speedup_high:.2f}"),
)

LAYER_COLUMNS = (
    ("in, out, kernel, stride, padding, side", "{shape}"),
    ("count", "{count}"),
    ("pass", "{pass}"),
    ("ms", "{ms:.3f}"),
    ("TFLOP/s", "{tflops:.3f}"),
    ("FLOP/byte", "{flop_per_byte:.0f}"),
)


def table(results: list[dict[str, Any]], columns: Sequence[tuple[str, str]] = COLUMNS) -> str:
    """Results as aligned text; what was not measured is a dash."""

    def cell(form: str, result: dict[str, Any]) -> str:
        try:
            return form.format(**result)
        except (KeyError, TypeError):
            return "-"

    rows = [[head for head, _ in columns]]
    rows += [[cell(form, result) for _, form in columns] for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    )
