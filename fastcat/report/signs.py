"""Signs of a collapse in the records of a run, in words."""

from collections.abc import Collection
from typing import Any


def new_signs(
    record: dict[str, Any], former: dict[str, Any], among: Collection[str] | None = None
) -> list[str]:
    """A line for each sign of an epoch's record that the record before it does not show."""
    lines = []
    for name, entry in record["peers"].items():
        known = former["peers"].get(name, {}).get("signs", ())
        for sign, sentence in entry.get("signs", {}).items():
            if sign not in known and (among is None or sign in among):
                lines.append(f"{name} in epoch {record['epoch']}: {sign}: {sentence}")
    return lines
