"""Progress bars on a terminal, and plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def make_console() -> Console:
    """A console that prints text as it is, without wrapping lines."""
    return Console(soft_wrap=True, highlight=False, markup=False)


def make_progress(console: Console) -> Progress:
    """A bar with the time left, which vanishes when done; nothing where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("time left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


@contextmanager
def task(console: Console, description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields progress(done, total) for a task that may take long; its first call announces it."""
    announced = False

    with make_progress(console) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal announced
            if not announced:
                announced = True
                bar.add_task(description, total=total)
                if not console.is_terminal:
                    console.print(description)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield progress
