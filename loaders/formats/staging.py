"""The hidden directory beside a pack in which it is made, and which becomes it by a rename.

.NAME.packed.part/ belongs to who holds its lock, and outlives a process that is killed. Where
directories cannot be locked, as on some network file systems, each packer has one of its own.
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
def workplace(packed: Path) -> Iterator[Path | None]:
    """A directory that no other process uses; None once there is a pack. Raises OSError."""
    part = packed.parent / f".{packed.name}.part"
    while not packed.exists():
        part.mkdir(exist_ok=True)
        before = _inode(part)
        with locked(part) as alone:
            if before is None or _inode(part) != before:
                continue  # another process renamed or removed it while this one waited
            if alone:
                if packed.exists():
                    part.rmdir()
                    break
                _remove_leftovers(packed)
                yield part
                return
        with suppress(OSError):  # it is not empty where another machine could lock it
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
    """Rename a finished directory, with the files `names` alone; another's pack stays."""
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
    """One sentence about what keeps the pack of `origin` from being written."""
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
    """Have a file or directory on the disk before what follows."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _remove_leftovers(packed: Path) -> None:
    """Remove what killed packers left that had no lock; none can be at work where there are."""
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
