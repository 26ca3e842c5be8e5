"""Files that are written completely or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastcat.errors import InputError


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an operating-system error about `path` into one sentence (InputError)."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save hides a full disk behind a RuntimeError of its own
        system = error if isinstance(error, OSError) else error.__context__
        if not isinstance(system, OSError):
            raise
        raise InputError(f"cannot write {path}: {system.strerror or system}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` puts into the open file, or leave it as it was.

    Raises InputError when the system refuses, for example on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explained(path):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of writers that were killed in `folder` or below."""
    with explained(folder):
        for temporary in folder.rglob(".*.tmp"):
            pid = temporary.name.split(".")[-2]
            if pid.isdigit() and not _alive(int(pid)):
                temporary.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
