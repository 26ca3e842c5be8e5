"""The Triton kernels themselves, run by Triton's interpreter in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton for this system")

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.process
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
