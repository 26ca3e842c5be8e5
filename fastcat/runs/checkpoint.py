"""Checkpoints: atomic, checksummed, and free of code.

A checkpoint (checkpoints/last.pt, the one before it as previous.pt, one to roll back to as good.pt)
is a torch archive of tensors and plain values with all that resuming needs; its CRC-32 sums are
checked before it is read, and it is read with weights_only=True.
"""

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastcat.errors import InputError
from fastcat.files import explained, write_atomically

FORMAT = 1


def last_checkpoint(run: Path) -> Path:
    """Where a run stands."""
    return run / "checkpoints" / "last.pt"


def good_checkpoint(run: Path) -> Path:
    """The end of the last epoch to which a run may roll back."""
    return run / "checkpoints" / "good.pt"


def save_checkpoint(run: Path, state: dict[str, Any], good: bool = False) -> None:
    """Write checkpoints/last.pt; the former one becomes previous.pt.

    run: folder of the run
    state: tensors and plain values
    good: whether a rollback may return to it, from good.pt

    Raises InputError when the disk refuses; the former checkpoints are then as they were.
    """
    last = last_checkpoint(run)
    previous, fresh = last.with_name("previous.pt"), last.with_name("fresh.pt")
    write_atomically(fresh, lambda file: torch.save({"format": FORMAT, **state}, file))
    with explained(last):
        if good:
            _name_also(fresh, good_checkpoint(run))
        if last.exists():
            _name_also(last, previous)
        os.replace(fresh, last)


def _name_also(file: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system has no links."""
    second = name.with_name("second.pt")
    second.unlink(missing_ok=True)
    try:
        os.link(file, second)
    except OSError:
        shutil.copyfile(file, second)  # a file system without hard links
    os.replace(second, name)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state saved at `path`.

    Raises InputError for a file that is missing, damaged, not fastcat's, or that carries code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"checkpoint {path} is damaged: {damaged} has the wrong checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError) as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} contains pickled code and was not loaded: "
            "only tensors and plain values are accepted"
        ) from error
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError) as error:
        raise InputError(
            f"checkpoint {path} is damaged or not a checkpoint: expected a complete torch archive"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of this version of fastcat")
    return state


def load_last_checkpoint(run: Path) -> tuple[dict[str, Any], str | None]:
    """The newest whole checkpoint of a run, and a remark if that is not the last one."""
    last = last_checkpoint(run)
    previous = last.with_name("previous.pt")
    if not last.exists() and not previous.exists():
        raise InputError(f"{run} is not a run: it has no checkpoints/last.pt")
    try:
        return read_checkpoint(last), None
    except InputError as error:
        if not previous.exists():
            raise
        state = read_checkpoint(previous)
        # out of the way, or the next checkpoint would make it the previous one
        if last.exists():
            os.replace(last, last.with_name("damaged.pt"))
        return state, f"{error}; going on from previous.pt"
