"""What holds for every op: covered by cases, registered rightly, and usable without Triton."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastcat.kernels._op import all_ops
from tests.harness.kernel_cases import Case, cases

CASES = cases(torch.float32, torch.bfloat16)


def test_every_op_has_cases_one_of_them_typical() -> None:
    names = [op.name for op in all_ops()]
    assert sorted({case.op.name for case in CASES.values() if case.typical}) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[] if case.typical else pytest.mark.represented)
        for name, case in CASES.items()
    ],
)
def test_torch_accepts_the_registration(case: Case) -> None:
    """A fake of other strides, or arguments changed in secret, would mislead torch.compile."""
    torch.library.opcheck(case.op.torch_op, case.args)


def test_inside_a_compiled_function_ops_change_their_arguments() -> None:
    case = CASES["pgd_update-linf-1x2x3x32x32-channels_last-channels_last-bfloat16"]

    def step(x_adv: torch.Tensor, low: torch.Tensor, *rest: Any) -> torch.Tensor:
        case.op(x_adv, low, *rest)
        return x_adv + low

    x_adv, low, *rest = case.args
    eager = step(x_adv.clone(), low.clone(), *rest)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x_adv.clone(), low.clone(), *rest), eager)


class _Dispatched(TorchDispatchMode):
    """Names of the operations that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["affine_relu", "multi_peer_loss"])
def test_torch_sees_the_op_that_gives_a_gradient(name: str) -> None:
    """A compiler traces backwards with tensors without data: a kernel launched on them fails."""
    case = next(case for case in CASES.values() if case.op.name == name and case.typical)
    x, *rest = case.args
    output = case.op(x.detach().requires_grad_(), *rest)
    first = output[0] if isinstance(output, tuple) else output
    with _Dispatched() as dispatched:
        first.sum().backward()
    assert any(asked.startswith(f"fastcat::{name}") for asked in dispatched.names)


@pytest.mark.slow
@pytest.mark.process
def test_without_triton_the_references_run() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
from fastcat.kernels._op import all_ops
assert list(all_ops())
from fastcat.kernels.affine_relu import affine_relu
assert affine_relu(-torch.ones(1, 1, 1, 1), -torch.ones(1), torch.ones(1)) == 2
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
