"""Every Triton kernel compiles for the GPUs in use, without a GPU, as it will be launched there.

A launcher runs on CPU tensors while Triton is told of another GPU and compiles instead of running:
so types, alignments and constants are those of the launch, and no list of them can go stale.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="no Triton for this system")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from tests.harness.kernel_cases import Case, cases  # noqa: E402

# A100, H100 and H200, B200
CAPABILITIES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
TYPICAL = {
    name: case
    for name, case in cases(torch.float32, torch.bfloat16, torch.float16).items()
    if case.typical
}


def compile_launches(
    monkeypatch: pytest.MonkeyPatch, capability: int, launch: Callable[[], Any], **options: Any
) -> list[Any]:
    """The kernels that launch() would run on a GPU of this capability."""
    compiled = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(run(self, *args, warmup=True, **kwargs, **options))

    target = GPUTarget("cuda", capability, 32)
    gpu = SimpleNamespace(
        # Triton keeps what it has compiled by device
        get_current_device=lambda: (capability, *options),
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
    )
    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(triton.runtime.driver, "_active", gpu)
    launch()
    return compiled


def stack_bytes(kernel: Any, folder: Path) -> int:
    """The local memory of a thread; a kernel without arrays has some when registers are spilled."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    done = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True)
    (stack,) = re.findall(r"STACK:(\d+)", done.stdout)
    return int(stack)


def check(kernel: Any, folder: Path) -> None:
    assert stack_bytes(kernel, folder) == 0, "registers are spilled"
    # what every GPU grants without asking
    assert kernel.metadata.shared <= 48 * 1024


def launches() -> Iterator[Any]:
    """Each typical case on one GPU, and each op on all of them."""
    seen = set()
    for capability in CAPABILITIES:
        for name, case in TYPICAL.items():
            first = (capability, case.op.name) not in seen
            seen.add((capability, case.op.name))
            marks = [] if first or capability == 90 else pytest.mark.represented
            yield pytest.param(case, capability, id=f"{name}-{capability}", marks=marks)


@pytest.mark.compile
@pytest.mark.parametrize(("case", "capability"), [*launches()])
def test_launches_compile_without_spills(
    case: Case, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = compile_launches(monkeypatch, capability, lambda: case.op.fused(*case.args))
    assert kernels
    for kernel in kernels:
        check(kernel, tmp_path)


@pytest.mark.compile
def test_a_spill_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = TYPICAL["pgd_update-l1-1x2x3x32x32-channels_last-channels_last-float32"]
    (kernel,) = compile_launches(monkeypatch, 90, lambda: case.op.fused(*case.args), maxnreg=16)
    with pytest.raises(AssertionError, match="registers are spilled"):
        check(kernel, tmp_path)
