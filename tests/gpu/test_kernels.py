"""Every Triton kernel on a GPU: right, the same each time, and fit for CUDA graphs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcat.kernels import augment, pgd_update
from tests.harness.kernel_cases import Case, cases
from tests.harness.kernel_comparison import check, guarded, results

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CASES = cases(torch.float32, torch.bfloat16, torch.float16)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def on_gpu(case: Case) -> tuple[Any, ...]:
    """The case's arguments in the same memory layout on the GPU."""
    return tuple(
        torch.empty_strided(arg.shape, arg.stride(), dtype=arg.dtype, device="cuda").copy_(arg)
        if isinstance(arg, Tensor)
        else arg
        for arg in case.args
    )


@each_case
def test_the_kernel_errs_no_more_than_plain_torch(case: Case) -> None:
    check(case.op, on_gpu(case), case.exact)


@each_case
def test_the_op_runs_the_kernel_and_gives_the_same_bits_each_time(case: Case) -> None:
    args = on_gpu(case)
    first = results(case.op, case.op.torch_op, tuple(map(guarded, args)))
    again = results(case.op, case.op.fused, tuple(map(guarded, args)))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name


@each_case
def test_the_op_asks_the_host_nothing(case: Case) -> None:
    args = on_gpu(case)
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.op(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_case
def test_a_captured_op_does_on_replay_what_the_op_does(case: Case) -> None:
    args = on_gpu(case)
    # compiles and loads the kernel, which a capture would refuse
    expected = results(case.op, case.op, tuple(map(guarded, args)))
    captured_args = tuple(map(guarded, args))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(case.op, case.op, captured_args)
    graph.replay()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_an_image_as_large_as_imagenets() -> None:
    """Offsets and loops at 3 x 224 x 224 in each norm."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((2, 3, 224, 224), generator=generator).to("cuda")
    x_adv = (x + 0.01 * torch.randn((2, *x.shape), generator=generator).to("cuda")).clamp(0, 1)
    grad = torch.randn((2, *x.shape), generator=generator).to("cuda")
    for norm, eps, step_size in (("linf", 4 / 255, 1 / 255), ("l2", 3.0, 1.0), ("l1", 60.0, 20.0)):
        check(pgd_update.OP, (x_adv, None, x, grad, norm, eps, step_size, 100, norm == "l2"))


def test_rows_beyond_two_to_the_31_elements() -> None:
    """Offsets of images are 64 bits wide."""
    images = torch.zeros((2**31 // 3072 + 2, 32, 32, 3), dtype=torch.uint8, device="cuda")
    images[-1] = 255
    draws = torch.tensor([[len(images) - 1, 0, 0, 0, 0, 32, 0, 32, 0, 0]], device="cuda").T
    assert (augment.augment(images, draws) == 1).all()
