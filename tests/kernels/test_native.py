"""How C++ is compiled and kept: once, whole or not at all, and what is said where it cannot be."""

import ctypes
import os
from pathlib import Path

import pytest

from fastcat.kernels import _native
from fastcat.kernels._native import CannotBuild


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastcat"


def test_it_is_compiled_once_and_left_whole(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _native.load("winograd")
    (library,) = fresh_cache.iterdir()
    written = library.stat().st_mtime_ns
    assert isinstance(_native.load("winograd"), ctypes.CDLL)
    assert [library] == list(fresh_cache.iterdir())
    assert library.stat().st_mtime_ns == written
    assert oct(fresh_cache.stat().st_mode)[-3:] == "700"


def test_without_a_compiler_one_line_says_so(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CannotBuild, match="there is no C\\+\\+ compiler: install g\\+\\+"):
        _native.load("winograd")


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotBuild, match="no-such-flag") as caught:
        _native.load("winograd", ["--no-such-flag"])
    assert len(str(caught.value).splitlines()) == 1
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 1\n")
    silent.chmod(0o755)
    monkeypatch.setenv("CXX", str(silent))
    with pytest.raises(CannotBuild, match="silent failed"):
        _native.load("winograd")
    assert not list(fresh_cache.iterdir())


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(CannotBuild, match="blocked"):
        _native.load("winograd")
    assert os.listdir(tmp_path) == ["blocked"]
