"""Files that are written completely or not at all."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastcat.errors import InputError
from fastcat.output import encodable


def find_path(name: str) -> Path:
    """A path that the system can look up. Raises InputError for text that cannot be one."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name!r} cannot be a path ({error}): give the path of a folder or file"
        ) from error
    return path


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

    Raises InputError when the system refuses, for example on a full disk, and for a device.
    """
    # cut, so that the longest name that the system takes can be written
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp")
    with explained(path):
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is no file that could be replaced")
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def claimed(paths: Iterable[Path]) -> Iterator[Path | None]:
    """An empty file at the first path that is free, which no other process takes; None if none is
    free.

    What was not replaced by the end is removed. An empty file that a killed process left counts as
    free. Raises InputError when the system refuses.
    """
    for path in paths:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _hold(path)
        if handle is None:
            continue
        try:
            yield path
        finally:
            if _is(path, handle):
                path.unlink()
            os.close(handle)
        return
    yield None


def _hold(path: Path) -> int | None:
    """A descriptor of the empty file at `path`, locked; None if another process holds it."""
    try:
        handle, fresh = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), True
    except FileExistsError:
        if not path.is_file() or path.stat().st_size:
            return None
        handle, fresh = os.open(path, os.O_RDWR), False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except BlockingIOError:
        mine = False
    except OSError:
        mine = fresh  # a file system without locks
    if mine and _is(path, handle) and not os.fstat(handle).st_size:
        return handle
    os.close(handle)
    return None


def _is(path: Path, handle: int) -> bool:
    """Whether an open file is the one at the path, which may have been replaced or removed."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


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
    """In UTF-8, whatever the locale."""
    write_atomically(path, lambda file: file.write(encodable(text).encode()))
