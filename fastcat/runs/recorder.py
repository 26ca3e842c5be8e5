"""What a run writes down: lines for people, JSON for programs, a bar on a terminal."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from fastcat.files import explained, write_text
from fastcat.output import one_line
from fastcat.progress import has_bar, make_progress
from fastcat.report.html import headline, renew_report


class Recorder:
    """Writes what a run reports: lines to the console and log.txt, records to *.jsonl.

    As a context manager it shows a progress bar with the time left on a terminal; elsewhere a line
    tells of the progress at every logging interval.
    run: folder of the run
    total_steps: steps of the whole run
    console: where lines are printed
    """

    def __init__(self, run: Path, total_steps: int, console: Console) -> None:
        self.run = run
        self.headed = False
        self.console = console
        self.progress = make_progress(self.console)
        self.task = self.progress.add_task("starting", total=total_steps)

    def __enter__(self) -> "Recorder":
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        """Print and log a line; line breaks and control characters in names are escaped."""
        text = one_line(text)
        self.console.print(text)
        self._append("log.txt", text)

    def advance(self, steps: int, description: str) -> None:
        self.progress.update(self.task, completed=steps, description=description)

    def epoch(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl and a row of the table under its header."""
        self._append("metrics.jsonl", json.dumps(record))
        head, row = table(record)
        if not self.headed:
            self.line(head)
            self.headed = True
        self.line(row)

    def steps(self, record: dict[str, Any]) -> None:
        """A line of steps.jsonl and, where no bar can stand, a sign of life."""
        self._append("steps.jsonl", json.dumps(record))
        if not has_bar(self.console):
            task = self.progress.tasks[0]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            losses = [
                f"{k.removesuffix('/loss')} {v:.4f}" for k, v in record.items() if "/loss" in k
            ]
            step = f"step {record['step']}/{task.total:.0f}"
            self.console.print(f"{task.description}, {step}{left}: loss {', '.join(losses)}")

    def report(self) -> None:
        """Renew report.html."""
        renew_report(self.run, self.line)

    def forget_after(self, epoch: int, step: int) -> None:
        """Drop the records past a checkpoint's finished epochs and finished steps."""
        for name, key, last in (("metrics.jsonl", "epoch", epoch), ("steps.jsonl", "step", step)):
            path = self.run / name
            kept = []
            for text in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
                try:
                    known = json.loads(text)[key] <= last
                except (json.JSONDecodeError, KeyError, TypeError):
                    known = False  # a line that a kill cut short
                if known:
                    kept.append(text + "\n")
            write_text(path, "".join(kept))

    def _append(self, name: str, text: str) -> None:
        path = self.run / name
        with explained(path), open(path, "a", encoding="utf-8") as file:
            file.write(text + "\n")


def table(record: dict[str, Any]) -> tuple[str, str]:
    """The heads of an epoch's columns and its row, of equal widths.

    Heads name the images on which accuracies are measured. Of several threat models the worst
    accuracies are shown. A star marks a peer's best epoch so far.
    """
    digits = len(str(record["epochs"]))
    heads, cells = (
        ["epoch", "lr"],
        [
            f"{record['epoch']:{digits}}/{record['epochs']}",
            f"{record['lr']:.5f}",
        ],
    )
    for name, entry in record["peers"].items():
        accuracy = headline(entry["accuracy"])
        judged = "".join(f" {record['judged_on']}-{attack}" for attack in accuracy)
        heads.append(f"{name}: loss{judged}")
        accuracies = "".join(f" {100 * value:6.2f}%" for value in accuracy.values())
        star = " *" if entry["best"] else "  "
        cells.append(f"{name}: {entry['train']['loss']:7.4f}{accuracies}{star}")
    heads += ["images/s", "s/epoch", "MiB peak"]
    cells += [f"{record[key]:.{n}f}" for key, n in _MEASURED.items()]
    widths = [max(map(len, column)) for column in zip(heads, cells, strict=True)]
    rows = (
        " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (heads, cells)
    )
    head, row = rows
    return head, row


_MEASURED = {"images_per_second": 0, "seconds": 1, "peak_memory_mib": 0}
