"""Directories that are written whole or not at all, and locks of directories.

NAME.packed is written as .NAME.packed.part beside it, then renamed. The process that holds the lock
of the hidden directory owns it; after a kill the next process continues there. Where directories
cannot be locked, as on some network file systems, each process has a directory of its own.
"""

import errno
import fcntl
import os
import re
import shlex
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def staging_folder(packed: Path) -> Iterator[Path | None]:
    """The hidden directory for this process alone; None: the pack is there. Raises OSError."""
    part = packed.parent / f".{packed.name}.part"
    while not packed.exists():
        part.mkdir(exist_ok=True)
        before = _inode(part)
        with locked(part) as alone:
            if before is None or _inode(part) != before:
                continue  # it was renamed or removed while this process waited
            if alone:
                if packed.exists():
                    part.rmdir()
                    break
                _remove_leftovers(packed)
                yield part
                return
        with suppress(OSError):  # not empty where another machine could lock it
            part.rmdir()
        own = packed.parent / f".{packed.name}.{uuid.uuid4().hex}"
        own.mkdir()
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
        return
    yield None


def publish(part: Path, packed: Path, names: Collection[str]) -> None:
    """Rename a finished directory; a pack that another process finished first stays.

    names: files to keep; others are removed.
    """
    for path in part.iterdir():
        if path.name not in names:
            path.unlink()
    try:
        part.rename(packed)
    except OSError:
        if not packed.is_dir():
            raise
    flush(packed.parent)


def why_not_written(error: OSError, origin: str, packed: Path) -> str:
    """The error's sentence: why the pack of `origin` cannot be written, and what to type."""
    parent = packed.parent
    elsewhere = f"fastcat data convert {shlex.quote(origin)} OUT.packed"
    if error.errno in _FULL:
        return (
            f"no room to pack {origin} into {parent} ({error.strerror}): free space there, or type "
            f"{elsewhere} with a place that has some"
        )
    if error.errno in _FORBIDDEN:
        return (
            f"no permission to write {packed.name} into {parent} ({error.strerror}): type "
            f"{elsewhere} with a place where you may write"
        )
    return f"{packed} could not be written ({error}): mend that, or choose another place"


def flush(path: Path) -> None:
    """Write a file or directory through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Whether the directory's advisory lock is held; it is waited for.

    The kernel frees it when the process dies. False where a directory cannot be locked, as on some
    network file systems: callers must be correct without it too.
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


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _remove_leftovers(packed: Path) -> None:
    """Remove directories of killed processes that had no lock; called under the lock."""
    temporary = re.compile(rf"\.{re.escape(packed.name)}\.[0-9a-f]{{32}}")
    for path in packed.parent.iterdir():
        if temporary.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
