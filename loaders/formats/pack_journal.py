"""The journal of a pack under way, by which packing goes on after a kill."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .source import SPLITS, Fault

_LISTED = 1000


@dataclass(kw_only=True)
class Journal:
    """What is packed so far.

    identity: digest of the source, its image counts, and all else that decides the bytes.
    done: by split, images read.
    kept: by split, images of these that could be used.
    grey: whether all of these have one channel.
    faults: number of images that could not be used.
    listed: the first thousand of them, and why.
    remedies: what to do about them.
    fatal: whether leaving them out would not be enough.
    """

    identity: dict[str, Any]
    done: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    kept: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    grey: bool = True
    faults: int = 0
    listed: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    fatal: bool = False

    def add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.faults += 1
            if len(self.listed) < _LISTED:
                self.listed.append(fault.text)
            if fault.remedy not in self.remedies:
                self.remedies.append(fault.remedy)
            self.fatal = self.fatal or not fault.skippable

    def write(self, path: Path) -> None:
        """Write the journal by replacing the file. Raises OSError."""
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


def read_journal(path: Path, identity: dict[str, Any]) -> Journal | None:
    """The journal; None where it is missing, damaged or of another `identity`."""
    try:
        journal = Journal(**json.loads(path.read_text(encoding="utf-8")))
        fits = (
            journal.identity == identity
            and all(0 <= journal.kept[split] <= journal.done[split] for split in SPLITS)
            and all(journal.done[split] <= identity["counts"][split] for split in SPLITS)
            and journal.faults == sum(journal.done.values()) - sum(journal.kept.values())
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return journal if fits else None
