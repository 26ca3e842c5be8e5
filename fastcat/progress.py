"""Progress bars on a terminal, and plain lines elsewhere."""

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastcat.output import Output, one_line


class _Log(io.TextIOBase):
    """A stream whose lines go to the logger "fastcat"."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            logging.getLogger("fastcat").info("%s", line)
        return len(text)


def make_console(quiet: bool = False) -> Console:
    """A console that prints text as it is, without wrapping lines, and never fails.

    quiet: print nothing; lines go to the logger "fastcat" at level INFO
    """
    output = cast(TextIO, _Log() if quiet else Output(sys.stdout))
    return Console(file=output, soft_wrap=True, highlight=False, markup=False)


def has_bar(console: Console) -> bool:
    """Whether a bar can stand there: not in a file, whatever is said of colours, nor on a terminal
    that cannot move its cursor.
    """
    return console.is_interactive and console.file.isatty()


def make_progress(console: Console) -> Progress:
    """A progress bar with the time left, which vanishes at the end; nothing without a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=console,
        disable=not has_bar(console),
        transient=True,
    )


@contextmanager
def task(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total) for a task that may take long; its first call announces it."""
    description = one_line(description)
    announced = False

    with make_progress(console) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal announced
            if not announced:
                announced = True
                bar.add_task(description, total=total)
                if not has_bar(console):
                    console.print(description)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield progress
