"""How far a pack under way has come: written atomically, so that a killed packer can be resumed."""

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
    """What has been packed, and of what.

    identity: the source's digest, its number of images and all that decides their bytes.
    done, kept: per split, how many images were read, and how many of them could be used.
    grey: all kept ones had one channel. faults: how many could not be used; listed: them, the first
    thousand; remedies: what to do about all; fatal: leaving images out is not enough.
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
        """Replace the file at once. Raises OSError."""
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)


def read_journal(path: Path, identity: dict[str, Any]) -> Journal | None:
    """The journal, None where there is none that can be relied on for this very content."""
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
