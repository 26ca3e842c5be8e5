"""The Triton kernels themselves, run by Triton's interpreter in a process of their own."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version, parse

pytest.importorskip("triton", reason="no Triton for this system")

HERE = Path(__file__).parent


def too_old() -> bool:
    """Triton 3.6's interpreter makes numbers of arrays, which NumPy 2.4 refuses."""
    return parse(version("triton")) < Version("3.7") and parse(version("numpy")) >= Version("2.4")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif("too_old()", reason="Triton's interpreter is too old for this NumPy")
def test_every_kernel_under_the_interpreter(request: pytest.FixtureRequest) -> None:
    every = ["--all"] if request.config.getoption("--all") else []
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *every, HERE / "interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
