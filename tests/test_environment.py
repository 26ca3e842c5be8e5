"""What a result says of how it was made."""

import sys

import pytest

from fastcat import environment as module
from fastcat.cli.doctor import report
from fastcat.environment import environment, too_old


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


REQUIRED = [
    "torch>=2.9",
    "pillow>=9.3",
    "rich>=13",
    "numpy>=1.23",
    'triton>=3.5; platform_system == "Linux"',
    'pyarrow>=16; extra == "parquet"',
    'setuptools>=77; extra == "dev"',
    'fastcat-at[digits]; extra == "dev"',
    "safetensors",
]
INSTALLED = {
    "torch": "2.10.1+cpu",
    "pillow": "9.2.0",
    "rich": "13",
    "numpy": "1.23.0rc1",
    "pyarrow": "9.0.0",
    "setuptools": "65.5",
}


def test_doctor_tells_what_is_older_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches versions compared as text, what is missing taken for old, and tools of developers."""
    monkeypatch.setattr(module, "requires", lambda _: REQUIRED)
    monkeypatch.setattr(module, "package_version", INSTALLED.get)
    assert too_old() == [("pillow", "9.2.0", "9.3"), ("pyarrow", "9.0.0", "16")]
    assert "pillow 9.2.0 is too old: pip install 'pillow>=9.3'" in report()[0]


def test_a_checkout_that_is_not_installed_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise module.PackageNotFoundError

    monkeypatch.setattr(module, "requires", missing)
    assert too_old() == []
