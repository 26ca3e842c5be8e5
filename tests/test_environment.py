"""What a result says of how it was made."""

import sys

import pytest

from fastcat.environment import environment


@pytest.mark.parametrize(
    ("program", "name"),
    [
        pytest.param("/home/someone/.venv/bin/fastcat", "fastcat", id="installed"),
        pytest.param("/home/someone/code/fastcat/__main__.py", "fastcat", id="module"),
        pytest.param("/home/someone/code/benchmarks/gpu.py", "gpu.py", id="script"),
    ],
)
def test_the_command_does_not_tell_where_the_program_is(
    program: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches someone's home folder in a file that is published."""
    monkeypatch.setattr(sys, "argv", [program, "bench", "--arch", "resnet18"])
    assert environment()["command"] == f"{name} bench --arch resnet18"
