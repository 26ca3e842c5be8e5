"""A visit to a GPU with parts that go wrong, for tests/benchmarks/test_gpu.py."""

import os
import sys
import time
from pathlib import Path

import torch

from fastcat.benchmarks.gpu import run_parts
from fastcat.benchmarks.gpu_parts import Part, Visit, grouped_convolution


def raises(visit: Visit) -> dict[str, object]:
    raise ValueError(f"not on {visit.device}")


def dies(visit: Visit) -> dict[str, object]:
    os._exit(9)


def hangs(visit: Visit) -> dict[str, object]:
    time.sleep(600)
    return {}


PARTS = [
    Part("raises", raises, 1),
    Part("dies", dies, 1),
    Part("hangs", hangs, 1, seconds=1),
    Part("works", grouped_convolution, 1),
]

if __name__ == "__main__":
    out, _, *names = sys.argv[1:]
    visit = Visit(device=torch.device("cpu"), batch=2)
    sys.exit(run_parts([part for part in PARTS if part.name in names], visit, Path(out)))
