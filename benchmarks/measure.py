"""What `fastcat bench` measures with: time, the machine's own rates, counted FLOPs, peak memory."""

import gc
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from fastcat.precision import DTYPES, make_precision
from fastcat.step.engine import CudaGraph, static_inputs


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(function: Callable[[], object], steps: int, device: torch.device) -> float:
    """Time of one call, by the GPU's own events where there is one."""
    synchronize(device)
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(steps):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / steps
    started = time.perf_counter()
    for _ in range(steps):
        function()
    return 1000 * (time.perf_counter() - started) / steps


def graphed(function: Callable[..., Any], *inputs: Tensor) -> Callable[[], object]:
    """The function on these tensors as a CUDA graph, in which launches cost no time of the host, or
    as it is on a CPU.
    """
    if not inputs[0].is_cuda:
        return lambda: function(*inputs)
    static = static_inputs(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*static)
    torch.cuda.synchronize()
    graph = CudaGraph(function, static, stream)
    # the lambda keeps the graph's inputs alive
    return lambda: graph.graph.replay()


def best_milliseconds(function: Callable[..., Any], *inputs: Tensor, calls: int = 1) -> float:
    """Time of one call in a graph of `calls`, the best of eight turns, as clocks may be at rest."""
    device = inputs[0].device

    def several(*inputs: Tensor) -> Any:
        return [function(*inputs) for _ in range(calls)][-1]

    replay = graphed(several, *inputs)
    turns = 8 if inputs[0].is_cuda else 1
    return min(milliseconds(replay, 10 // calls + 1, device) for _ in range(turns)) / calls


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Within, so many other processes keep a CPU busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ends with the process that began it, also where that was killed
_BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


def matmul_tflops(precision: str, device: torch.device) -> float:
    """The rate of a large square matrix product of random numbers, best of five."""
    n = 8192 if device.type == "cuda" else 2048
    make_precision(precision, device)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
    a @ b
    best = min(milliseconds(lambda: a @ b, 3, device) for _ in range(5))
    return 2 * n**3 / best / 1e9


def copy_tb_per_s(device: torch.device) -> float:
    """Bytes read and written by a copy that no cache holds, best of five."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source).copy_(source)
    best = min(milliseconds(lambda: target.copy_(source), 3, device) for _ in range(5))
    return 2 * source.numel() * source.element_size() / best / 1e9


def _fused_conv_flop(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


class _NoModules(ModuleTracker):
    """Knows no modules: hooks on a module's input refuse torch.autograd.grad to that input."""

    def __enter__(self) -> "_NoModules":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def flop_per_image(step: Callable[[], object], batch: int) -> float:
    """Multiplications and additions of convolutions and matrix products in an eager step."""
    fused = (torch.ops.aten.cudnn_convolution_relu, torch.ops.aten.cudnn_convolution_add_relu)
    formulas = dict.fromkeys(fused, _fused_conv_flop)
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _NoModules()
    with counter:
        step()
    return counter.get_total_flops() / batch


class PeakMemory:
    """Growth of the memory in use to its peak, in MiB; None where the system does not tell."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before: float | None = torch.cuda.memory_allocated(device) / 2**20
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status_mib("VmRSS")
        except OSError:
            self.before = None

    def mib(self) -> float | None:
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20 - self.before
        return _status_mib("VmHWM") - self.before


def _status_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) / 2**10
