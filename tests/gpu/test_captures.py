"""Captures on a GPU: what they are rehearsed on, share, and leave behind when they fail."""

import gc
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from fastcat.step.engine import CudaGraph, static_inputs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

MIB = 2**20


def double(x: Tensor) -> Tensor:
    return 2 * x


def asks_the_host(x: Tensor) -> Tensor:
    return x * x.sum().item()


def fails(x: Tensor) -> NoReturn:
    raise ValueError("of its own")


@pytest.fixture
def stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def test_a_graph_keeps_what_it_was_rehearsed_on() -> None:
    """A slice's strides and alignment make Triton compile anew, which a capture forbids."""
    draws = torch.rand(2, 3 * 37, device="cuda")[:, 37:74]
    (static,) = static_inputs([draws])
    assert static.is_contiguous()
    assert static.data_ptr() % 256 == 0


@pytest.mark.parametrize("function", [asks_the_host, fails])
def test_a_failed_capture_leaves_generator_and_memory_usable(
    function: object, stream: torch.cuda.Stream
) -> None:
    """Dropout would fail from then on, and memory that crossed streams would never be reused."""
    x = torch.ones(4, device="cuda")
    with pytest.raises((RuntimeError, ValueError)) as failure:
        CudaGraph(function, [x], stream)  # type: ignore[arg-type]
    assert "previous error" not in str(failure.value)
    torch.randn(2, device="cuda")
    other = torch.cuda.Stream()
    reserved = torch.cuda.memory_reserved()
    for _ in range(32):
        with torch.cuda.stream(other):
            held = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
        torch.cuda.current_stream().wait_stream(other)
        held.record_stream(torch.cuda.current_stream())
        del held
        torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() - reserved <= 64 * MIB


def test_graphs_share_a_pool_and_keep_their_outputs(stream: torch.cuda.Stream) -> None:
    """Catches a pool a graph (twice the memory), and an output that another graph overwrites."""
    pool = torch.cuda.graph_pool_handle()

    def wide(x: Tensor) -> Tensor:
        return (x.expand(16 * MIB // 4, -1) + 1).sum(0)

    x = torch.ones(4, device="cuda")
    with torch.cuda.stream(stream):
        wide(x)
    torch.cuda.synchronize()
    graphs = [CudaGraph(wide, [x], stream, pool)]
    reserved = torch.cuda.memory_reserved()
    graphs += [CudaGraph(wide, [x], stream, pool) for _ in range(3)]
    assert torch.cuda.memory_reserved() - reserved <= 8 * MIB
    outputs = [graph(k * x) for k, graph in enumerate(graphs)]
    for k, output in enumerate(outputs):
        assert torch.equal(output, wide(k * x))


def test_nothing_is_collected_during_a_capture(stream: torch.cuda.Stream) -> None:
    """An older graph that is freed then would end the capture."""

    def enabled_within(x: Tensor) -> Tensor:
        seen.append(gc.isenabled())
        return double(x)

    seen: list[bool] = []
    x = torch.ones(4, device="cuda")
    enabled_within(x)
    CudaGraph(enabled_within, [x], stream)
    assert seen == [True, False]
    assert gc.isenabled()
