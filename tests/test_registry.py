"""Choices that are files of a package."""

import subprocess
import sys
from pathlib import Path

import pytest

from fastcat.errors import InputError
from fastcat.registry import load, names


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "choices_of_a_test"
    folder.mkdir()
    for name in ("left_right", "up"):
        (folder / f"{name}.py").write_text(f"def {name}():\n    return {name!r}\n")
    for name in ("__init__", "_shared", "broken"):
        (folder / f"{name}.py").write_text("raise RuntimeError\n" if name == "broken" else "")
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_files_are_choices_unless_an_underscore_says_no(package: str) -> None:
    """Catches a listing that imports: one of the files cannot be."""
    assert names(package) == ("broken", "left-right", "up")
    assert load(package, "left-right", "way")() == "left_right"


def test_an_unknown_choice_is_one_sentence(package: str) -> None:
    with pytest.raises(InputError, match="unknown way 'left_right': did you mean 'left-right'"):
        load(package, "left_right", "way")


def test_a_listing_imports_nothing_else() -> None:
    code = (
        "import sys; from fastcat import registry; print(registry.names('fastcat.objectives'));"
        "assert 'fastcat.objectives' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "'pgd-cw'" in done.stdout
