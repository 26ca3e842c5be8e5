"""C++ for the CPU: a file beside this one, compiled for this machine when it is first asked for.

The library is kept in the user's cache folder under a name made of all that it depends on.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

# as GCC has them; no -ffast-math, which would drop NaN
FLAGS = ("-O3", "-std=c++17", "-march=native", "-fPIC", "-shared", "-fopenmp")


class CannotBuild(Exception):
    """Why a library cannot be had, in one line."""


def load(name: str, flags: Sequence[str] = ()) -> ctypes.CDLL:
    """The library of NAME.cpp, with further compiler flags; raises CannotBuild."""
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if sys.platform != "linux":
        raise CannotBuild("it is for Linux")
    if compiler is None:
        raise CannotBuild("there is no C++ compiler: install g++")
    command = [compiler, *FLAGS, *flags, str(source), *_openmp()]
    cpu = [line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))]
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True).stdout
        parts = (source.read_bytes(), version, *map(str.encode, (*command, *cpu[:1])))
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
        library = _cache() / f"{name}-{digest[:20]}.so"
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                built = Path(folder) / library.name
                done = subprocess.run(
                    [*command, "-o", str(built)], capture_output=True, text=True, errors="replace"
                )
                if done.returncode:
                    complaints = [one for one in done.stderr.splitlines() if "error" in one]
                    raise CannotBuild((complaints or [f"{compiler} failed"])[0])
                os.replace(built, library)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise CannotBuild(str(error)) from error


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastcat"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _openmp() -> list[str]:
    """The runtime that torch has loaded: threads of a second one would wait beside its own."""
    assert torch.get_num_threads()  # it is loaded with torch
    return [line.split()[-1] for line in _lines("/proc/self/maps") if "libgomp" in line][:1]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
