"""One process at a time in a directory, without a lock file that somebody would have to remove."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Wait for the directory's advisory lock and hold it; the kernel frees it when a process dies.

    Yields whether the lock is held: False where a directory cannot be opened or locked, as on some
    network file systems, so that callers must stay correct (if wasteful) without it.
    """
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
