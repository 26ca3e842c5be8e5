"""C++ for the CPU: a file beside this one, compiled for this machine when it is first asked for.

The library is kept in the user's cache folder under a name made of all that it depends on; where
nothing can be kept, every process builds its own.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

# as GCC has them; no -ffast-math, which would drop NaN
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fPIC", "-shared", "-fopenmp")


class CannotBuild(Exception):
    """Why a library cannot be had, in one line."""


def load(name: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library of NAME.cpp, built if need be.

    flags: further compiler flags
    Raises CannotBuild.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    if sys.platform != "linux":
        raise CannotBuild("it is for Linux")
    compiler = _compiler()
    command = [*compiler, *FLAGS, *flags, str(source), *_openmp()]
    cpu = [line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))]
    try:
        version = _run([*compiler, "--version"]).stdout.encode()
        parts = (source.read_bytes(), version, *map(os.fsencode, (*command, *cpu[:1])))
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        kept = kept_file(f"{name}-{digest[:20]}.so")
        if kept is not None:
            with suppress(OSError):  # it is not there, or not whole
                return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory() as folder:
            built = Path(folder) / f"{name}.so"
            _build(command, built)
            if kept is not None:
                with suppress(OSError):
                    _keep(built, kept)
                    return ctypes.CDLL(str(kept))
            return ctypes.CDLL(str(built))
    except OSError as error:
        raise CannotBuild(str(error)) from error


def _compiler() -> list[str]:
    """The command in CXX, which may have words of its own as "ccache g++", or else g++.

    CXXFLAGS is not asked: among flags meant for other programs are such that change numbers.
    """
    typed = os.environ.get("CXX", "").strip()
    try:
        # a path with spaces is one word
        words = [typed] if shutil.which(typed) else shlex.split(typed) or ["g++"]
    except ValueError as error:
        raise CannotBuild(f"CXX is {typed!r}, which is no command: {error}") from error
    found = shutil.which(words[0])
    if found is None:
        which = f", {words[0]!r} of CXX is not there" if typed else ""
        raise CannotBuild(f"there is no C++ compiler{which}: install g++")
    return [found, *words[1:]]


def _build(command: Sequence[str], library: Path) -> None:
    done = _run([*command, "-o", str(library)])
    if done.returncode:
        complaints = [one for one in done.stderr.splitlines() if "error" in one]
        raise CannotBuild((complaints or [f"{command[0]} failed"])[0])
    if not library.exists():
        raise CannotBuild(f"{command[0]} has written nothing: expected a C++ compiler")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )


def kept_file(file: str) -> Path | None:
    """The file in which a library is kept once built; None for a user without a home."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "fastcat" / file


def _keep(built: Path, kept: Path) -> None:
    """Copy it there, whole or not at all. Raises OSError where nothing can be written."""
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as copy:
        try:
            copy.write(built.read_bytes())
            copy.flush()
            os.fsync(copy.fileno())
            os.replace(copy.name, kept)
        except BaseException:
            os.unlink(copy.name)
            raise


def _openmp() -> list[str]:
    """The runtime that torch has loaded: threads of a second one would wait beside its own."""
    assert torch.get_num_threads()  # it is loaded with torch
    return [line.split()[-1] for line in _lines("/proc/self/maps") if "libgomp" in line][:1]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
