"""How C++ is compiled and kept: once, whole or not at all, and what is said where it cannot be."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcat.kernels import _native
from fastcat.kernels._native import CannotBuild


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastcat"


@pytest.mark.compile
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
    with pytest.raises(CannotBuild, match=r"there is no C\+\+ compiler, .*: install g\+\+"):
        _native.load("winograd")


@pytest.mark.process
@pytest.mark.compile
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
    assert not fresh_cache.exists()


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Compiles a small file, as others are, and calls it."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "small.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(_native, "__file__", str(folder / "_native.py"))
    return lambda: _native.load("small").answer()


def compiler(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.process
@pytest.mark.compile
def test_a_compiler_of_several_words(
    fresh_cache: Path,
    answer: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches CXX taken for the name of a file, as build tools never do, and never taken for it."""
    log = tmp_path / "log"
    wrapper = compiler(tmp_path / "tools" / "cache", f'echo used >> {log}; exec "$@"')
    spaced = compiler(tmp_path / "my tools" / "g++", f'echo used >> {log}; exec g++ "$@"')
    for typed in (f"{wrapper} g++", str(spaced), f"'{spaced}' -DFLAG", f"{wrapper} '{spaced}'"):
        log.write_text("")
        monkeypatch.setenv("CXX", typed)
        assert answer() == 42
        assert "used" in log.read_text(), typed
    assert len(list(fresh_cache.iterdir())) == 4
    # flags of other programs, of which some change numbers
    monkeypatch.setenv("CXXFLAGS", "--no-such-flag")
    monkeypatch.setenv("CXX", "  ")
    assert answer() == 42


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("no-such-compiler -x", "no C\\+\\+ compiler, 'no-such-compiler' of CXX is not there"),
        ("g++ '", 'CXX is "g\\+\\+ \'", which is no command'),
        ("true", "true has written nothing: expected a C\\+\\+ compiler"),
        ("cat", "cat failed"),
        ("/tmp", "'/tmp' of CXX is not there"),
    ],
)
def test_what_is_no_compiler(
    typed: str,
    expected: str,
    fresh_cache: Path,
    answer: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", typed)
    with pytest.raises(CannotBuild, match=expected):
        answer()
    assert not fresh_cache.exists()


@pytest.mark.compile
def test_a_library_that_is_not_whole_is_built_again(
    fresh_cache: Path,
    answer: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an engine that is gone for good after a machine went down at the wrong moment."""
    assert answer() == 42
    (library,) = fresh_cache.iterdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    damaged = tmp_path / "other" / "fastcat" / library.name
    damaged.parent.mkdir(parents=True)
    damaged.touch()
    assert answer() == 42
    assert [damaged] == list(damaged.parent.iterdir())
    assert damaged.read_bytes() == library.read_bytes()


@pytest.mark.compile
def test_where_nothing_can_be_kept_it_is_built_all_the_same(
    answer: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert answer() == 42
    # a user whom no file of passwords knows, as in many containers
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert answer() == 42
    assert sorted(os.listdir(tmp_path)) == ["blocked", "sources"]
