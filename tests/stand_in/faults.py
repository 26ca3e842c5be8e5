"""`python -m tests.stand_in.faults`: does the stand-in notice what CUDA forbids?

Prints a JSON object a line for each fault that is planted: fault, violations, synchronisations.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from fastcat.kernels.augment import augment
from fastcat.step.engine import CudaGraph
from tests.stand_in.stand_in import synchronisations, violations

x = torch.ones(64, device="cuda")


def captured(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    # torch raises for some of the faults
    with suppress(RuntimeError):
        CudaGraph(function, inputs or [x], torch.cuda.Stream())


def wait() -> None:
    """A question to the host within a step."""
    (2 * x).sum().item()


def wait_in_a_capture() -> None:
    captured(lambda x: x * x.sum().item())


def compile_in_a_capture() -> None:
    """A kernel that has not been launched before is loaded in its first launch."""
    pixels = torch.zeros(8, 4, 4, 3, dtype=torch.uint8, device="cuda")
    draws = torch.zeros(10, 4, dtype=torch.int64, device="cuda")
    captured(lambda draws: augment(pixels, draws), draws)


def stream_without_join() -> None:
    other = torch.cuda.Stream()

    def forked(x: Tensor) -> Tensor:
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            return 2 * x

    captured(forked)


def wait_for_a_stream_outside() -> None:
    """The capture would depend on work that is not in it."""
    other = torch.cuda.Stream()
    with torch.cuda.stream(other):
        before = 2 * x

    def dependent(x: Tensor) -> Tensor:
        torch.cuda.current_stream().wait_stream(other)
        return x + before

    captured(dependent)


FAULTS = [
    wait,
    wait_in_a_capture,
    compile_in_a_capture,
    stream_without_join,
    wait_for_a_stream_outside,
]


def outcomes() -> Iterator[dict[str, object]]:
    for fault in FAULTS:
        before = synchronisations()
        fault()
        found = {"synchronisations": synchronisations() - before, "violations": violations()}
        yield {"fault": fault.__name__} | found


if __name__ == "__main__":
    for outcome in outcomes():
        print(json.dumps(outcome), flush=True)
