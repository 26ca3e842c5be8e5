"""What a command imports before it works: --help and a wrong word cost no more than they need."""

import re
import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "triton", "numpy", "PIL"}
# what parses options, and what draws on terminals
PARSERS = {"tyro", "rich", "yaml"}

LIGHT = {
    "fastcat": ["-c", "import fastcat; dir(fastcat), fastcat.__version__"],
    "--help": ["-m", "fastcat", "--help"],
    "--version": ["-m", "fastcat", "--version"],
    "an unknown command": ["-m", "fastcat", "trian"],
}
HELPS = [
    *(["train"], ["resume"], ["eval"], ["bench"], ["list"], ["doctor"]),
    *(["data", "convert"], ["data", "info"], ["data", "verify"]),
]


def imported(arguments: list[str]) -> set[str]:
    """Top-level packages that Python imports on the way."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True
    )
    found = set(re.findall(r"^import time:.*\| +(\w+)", done.stderr, re.MULTILINE))
    assert "fastcat" in found, done.stderr
    return found


@pytest.mark.parametrize("arguments", LIGHT.values(), ids=LIGHT)
def test_what_parses_nothing_imports_nothing(arguments: list[str]) -> None:
    assert not imported(arguments) & (HEAVY | PARSERS)


@pytest.mark.slow
@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_imports_nothing_that_computes(words: list[str]) -> None:
    found = imported(["-m", "fastcat", *words, "--help"])
    assert not found & HEAVY
    assert "tyro" in found
