"""The record of `make gpu` as a Markdown page."""

from collections.abc import Iterator, Mapping
from typing import Any

# columns of a race
RACE = (
    "peers",
    "batch_size",
    "contestant",
    "ms",
    "seconds_per_epoch",
    "speedup",
    "peak_memory_mib",
)


def page(record: Mapping[str, Any]) -> str:
    """What each part found, as tables, in the order in which they ran."""
    environment = record.get("environment", {})
    gpus = ", ".join(gpu["name"] for gpu in environment.get("gpus", [])) or "no GPU"
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {packages.get(name)}" for name in ("torch", "triton"))
    lines = ["# What a GPU shows", "", f"{gpus}, {versions}, {record.get('date')}.", ""]
    for name, part in record["parts"].items():
        lines += [f"## {name}", "", *_shown(part["result"]), f"{part['seconds']} s.", ""]
    return "\n".join(lines)


def _shown(result: Mapping[str, Any]) -> Iterator[str]:
    """Rows as tables, of races what compares, everything else as a list."""
    for name, value in result.items():
        if name in ("date", "environment", "settings"):
            continue
        if name == "results" and value:
            yield from _table(value, RACE)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield from _table(value[:40], tuple(value[0]))
        elif isinstance(value, Mapping):
            yield from _table(
                [{"": key, name: one} for key, one in value.items() if not isinstance(one, Mapping)]
            )
        elif not isinstance(value, list | tuple) or value:
            yield f"- {name}: {_text(value)}"
    yield ""


def _table(rows: list[dict[str, Any]], wanted: tuple[str, ...] | None = None) -> Iterator[str]:
    columns = [name for name in wanted or tuple(rows[0] if rows else ()) if name in rows[0]]
    if not columns:
        return
    yield ""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_text(row.get(name)) for name in columns) + " |"
    yield ""


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:200]
