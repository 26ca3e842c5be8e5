"""What `make gpu` asks a GPU, part by part: benchmarks/gpu.py runs them.

A part gets the visit's settings and returns what it found, as plain values for JSON. What costs
time inside a part is measured inside a graph or by the best of several turns, as clocks may be at
rest when it begins.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcat.attacks.frozen import Epilogue, Frozen
from fastcat.attacks.pgd import PGD, Network, attack_all
from fastcat.attacks.threat import ThreatModel
from fastcat.benchmarks.config import BenchConfig
from fastcat.benchmarks.contestants import (
    Ours,
    images,
    make_contestant,
    make_network,
    set_arithmetic,
)
from fastcat.benchmarks.layers import step_floor
from fastcat.benchmarks.measure import best_milliseconds, milliseconds, synchronize
from fastcat.benchmarks.throughput import bench
from fastcat.config.peers import parse_peers
from fastcat.kernels.batch_norm import BACKWARD, BATCH_NORM
from fastcat.kernels.epilogue import epilogue as add_epilogue

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """arch, wide_arch: names of `fastcat list archs`; batch: images a step."""

    device: torch.device
    arch: str = "resnet18"
    wide_arch: str = "wrn-34-10"
    batch: int = 128

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def fastest(self) -> str:
        """The contestant that is meant for a GPU; on a CPU one that stands in for it."""
        return "bf16/graph" if self.cuda else "bf16/eager"


def twin(model: nn.Module, example: Tensor, epilogue: Epilogue) -> Frozen:
    """Raises RuntimeError where it cannot have that epilogue."""
    twin = Frozen(model, torch.bfloat16, example, epilogue)
    if twin.epilogue != epilogue:
        raise RuntimeError(f"the epilogue by {epilogue} gives something else")
    return twin


def compiled_twin(model: nn.Module, example: Tensor) -> Frozen:
    twin = Frozen(model, torch.bfloat16, example, "torch")
    twin.compile()
    return twin


ATTACKED: dict[str, Callable[[nn.Module, Tensor], Network]] = {
    "model under autocast": lambda model, example: model,
    **{
        f"twin, epilogue by {epilogue}": partial(twin, epilogue=epilogue)
        for epilogue in get_args(Epilogue)
    },
    "twin, Inductor": compiled_twin,
}


def default_command(visit: Visit) -> dict[str, Any]:
    """A run of `fastcat train` on digits: whether it trains and keeps its graph, the plan that it
    chose, and seconds to its end.
    """
    if importlib.util.find_spec("tyro") is None:
        return {"left out": "fastcat train needs tyro: pip install tyro"}
    with tempfile.TemporaryDirectory() as folder:
        run, begin = Path(folder, "run"), time.monotonic()
        command = [
            *(sys.executable, "-m", "fastcat", "train", "--arch", visit.arch, "--data", "digits"),
            *("--peers", "trades,alp", "--eps", "0.1", "--epochs", "1", "--out", str(run)),
            *("--batch-size", str(min(visit.batch, 64)), "--device", visit.device.type),
        ]
        # a plan that was measured before would not be measured now
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        found: dict[str, Any] = {
            "exit": done.returncode,
            "seconds": round(time.monotonic() - begin, 1),
            "lines": done.stdout.splitlines()[-12:] + done.stderr.splitlines()[-4:],
        }
        for name in ("plan.json", "metrics.jsonl"):
            if (run / name).exists():
                found[name] = json.loads((run / name).read_text())
    if done.returncode:
        raise RuntimeError("\n".join(found["lines"]))
    return found


def graph_equals_eager(visit: Visit, steps: int = 20) -> dict[str, float]:
    """Largest relative difference of the weights after some steps with the same noise."""
    deterministic = torch.backends.cudnn.deterministic
    specs = list(parse_peers("trades,alp", visit.arch))
    found = {}
    try:
        for precision in ("fp32", "bf16"):
            ends = []
            for engine in ("eager", "graph"):
                name = f"{precision}/{engine}"
                contestant = make_contestant(name, specs, visit.batch, visit.device)
                assert isinstance(contestant, Ours)
                # a search could choose other algorithms for the other engine
                torch.backends.cudnn.benchmark = False
                torch.backends.cudnn.deterministic = True
                for _ in range(steps):
                    contestant.train()
                ends.append([peer.optimizer.flat.clone() for peer in contestant.team.peers])
            found[precision] = max(
                ((a - b).norm() / b.norm()).item() for a, b in zip(*ends, strict=True)
            )
    finally:
        torch.backends.cudnn.deterministic = deterministic
    return found


def first_steps(visit: Visit) -> dict[str, float]:
    """Seconds to the first step and to the second, and milliseconds of those that follow."""
    begin = time.monotonic()
    specs = list(parse_peers("trades,alp", visit.arch))
    contestant = make_contestant(visit.fastest, specs, visit.batch, visit.device)
    found = {}
    for name in ("seconds to the first step", "seconds to the second"):
        contestant.train()
        synchronize(visit.device)
        found[name] = round(time.monotonic() - begin, 2)
    steps = 20 if visit.cuda else 1
    found["ms a step"] = min(
        milliseconds(contestant.train, steps, visit.device) for _ in range(5 if visit.cuda else 1)
    )
    found["s an epoch of 50 000 images"] = 50 * found["ms a step"] / visit.batch
    return found


def plans(visit: Visit) -> dict[str, Any]:
    """Milliseconds of a step by every plan that `fastcat tune` tries without compiling."""
    specs = list(parse_peers("trades,alp", visit.arch))
    ours = make_contestant("bf16/graph", specs, visit.batch, visit.device)
    assert isinstance(ours, Ours)
    measured = ours.engine.tune(ours.inputs, ours.template, compiled=False)
    return measured.to_dict()


def profile(visit: Visit, steps: int = 5) -> dict[str, Any]:
    """Where the time of a step goes: kernels by name, their microseconds and launches a step."""
    specs = list(parse_peers("trades,alp", visit.arch))
    contestant = make_contestant(visit.fastest, specs, visit.batch, visit.device)
    for _ in range(2):
        contestant.train()
    synchronize(visit.device)
    kind = torch.profiler.ProfilerActivity
    activities = [kind.CUDA] if visit.cuda else [kind.CPU]
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(steps):
            contestant.train()
        synchronize(visit.device)
    on = torch.autograd.DeviceType.CUDA if visit.cuda else torch.autograd.DeviceType.CPU
    rows = sorted(
        (
            (event.self_device_time_total if visit.cuda else event.self_cpu_time_total) / steps,
            event.count / steps,
            event.key[:120],
        )
        for event in recorded.key_averages()
        # an operation's time on a GPU is that of its kernels, which stand there too
        if event.device_type == on
    )[::-1]
    return {
        "launches a step": sum(count for _, count, _ in rows),
        "busy ms": sum(us for us, *_ in rows) / 1000,
        "kernels": [
            {"us": round(us, 1), "launches": round(count, 1), "name": name}
            for us, count, name in rows[:60]
        ],
    }


def tests(visit: Visit, selected: Sequence[str], seconds: float) -> dict[str, Any]:
    """The GPU tests, side by side where pytest-xdist is installed; names also of what was stopped.

    selected: arguments of pytest
    """
    command = [sys.executable, "-m", "pytest", "-v", "--maxfail=20", "-p", "no:cacheprovider"]
    command += ["-n", "8"] if importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryFile("w+") as output:
        try:
            done: int | str = subprocess.run(
                [*command, *selected], cwd=ROOT, stdout=output, stderr=output, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            done = f"stopped after {seconds:g} s"
        output.seek(0)
        lines = output.read().splitlines()
    ended = Counter(
        word for line in lines for word in re.findall(r"\b(PASSED|FAILED|SKIPPED|ERROR)\b", line)
    )
    failures = [line for line in lines if re.match("(FAILED|ERROR) ", line)]
    found = {"exit": done, "ended": dict(ended), "failures": failures, "last": lines[-3:]}
    if failures or done not in (0, 5):
        print("\n".join(lines[-40:]))
    return found


def race(visit: Visit, quick: bool = False, **settings: Any) -> dict[str, Any]:
    """`fastcat bench`; quick: fewer turns."""
    settings = {"arch": visit.arch, "batch_size": str(visit.batch), **settings}
    if not visit.cuda:
        settings |= {"repetitions": 1, "steps": 1}
    elif quick:
        settings = {"repetitions": 3, "steps": 3, **settings}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bench.json"
        return bench(BenchConfig(out=out, device=visit.device.type, **settings))


def attack_iterations(visit: Visit) -> dict[str, Any]:
    """Milliseconds of one PGD step of one network, as the model or as a kind of twin."""
    found: dict[str, Any] = {}
    for kind in ATTACKED:
        try:
            found[f"{kind}, ms"] = attack_iteration(kind, visit)
        except RuntimeError as error:  # an epilogue that is not to be had
            found[kind] = str(error)
    return found


def attack_iteration(kind: str, visit: Visit) -> float:
    set_arithmetic(visit.fastest, visit.device)
    model = make_network(0, visit.arch).to(visit.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = images(visit.batch, visit.device)
    x = x.contiguous(memory_format=torch.channels_last)
    threat = ThreatModel(steps=1)
    noise = threat.draw_noise("uniform", x, None)[None, None]
    network = ATTACKED[kind](model, x[:2])

    def iterate(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(visit.device.type, torch.bfloat16):
            return attack_all([network], [PGD()], x, y, threat, noise)

    return best_milliseconds(iterate, x, y, noise)


def batch_norms(visit: Visit) -> dict[str, float]:
    """Milliseconds of BatchNorm, residual and ReLU of two views, forward and backward: by torch one
    view after the other, by our kernels at once.
    """
    found = {}
    for channels, side in ((64, 32), (512, 4)):
        shape = (2 * visit.batch, channels, side, side)
        x, residual, dy = (
            torch.randn(shape, device=visit.device, dtype=torch.bfloat16).contiguous(
                memory_format=torch.channels_last
            )
            for _ in range(3)
        )
        norm = nn.BatchNorm2d(channels).to(visit.device)

        def by_torch(x: Tensor, residual: Tensor, dy: Tensor, norm: nn.Module = norm) -> Tensor:
            for part, more, grad in zip(x.chunk(2), residual.chunk(2), dy.chunk(2), strict=True):
                leaves = [tensor.detach().requires_grad_() for tensor in (part, more)]
                y = (norm(leaves[0]) + leaves[1]).relu()
                grads = torch.autograd.grad(y, leaves, grad)
            return grads[0]

        def by_kernel(
            x: Tensor, residual: Tensor, dy: Tensor, norm: nn.BatchNorm2d = norm
        ) -> Tensor:
            moving = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            weights = norm.weight.detach(), norm.bias.detach()
            y, *statistics = BATCH_NORM(
                x, *weights, *moving, residual, 0.1, norm.eps, 2, True, True
            )
            return BACKWARD(dy, None, x, y, *weights, *statistics, True, True)[0]

        for name, function in (("torch", by_torch), ("kernel", by_kernel)):
            found[f"{channels} channels, {name}, ms"] = best_milliseconds(function, x, residual, dy)
    return found


def streams(visit: Visit) -> dict[str, float]:
    """Milliseconds of a step with a stream for each peer, and with one stream for all."""
    specs = list(parse_peers("trades,alp", visit.arch))
    found = {}
    for times in (1, 4):
        batch = times * visit.batch
        for side_by_side in (True, False):
            contestant = make_contestant(
                visit.fastest, specs, batch, visit.device, lanes=side_by_side
            )
            contestant.train()
            contestant.train()
            turns = 5 if visit.cuda else 1
            name = "a stream each" if side_by_side else "one stream"
            found[f"batch {batch}, {name}, ms"] = min(
                milliseconds(contestant.train, turns, visit.device) for _ in range(turns)
            )
    return found


def grouped_convolution(visit: Visit) -> dict[str, float]:
    """Milliseconds of two peers' convolutions of 256 channels: one after the other, on two streams,
    and as groups=2.
    """
    x, w = (
        torch.randn(shape, device=visit.device, dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        for shape in ((visit.batch, 512, 8, 8), (512, 256, 3, 3))
    )
    halves = [
        part.contiguous(memory_format=torch.channels_last)
        for part in (*x.chunk(2, 1), *w.chunk(2, 0))
    ]
    cuda = visit.cuda
    streams = [torch.cuda.Stream() for _ in range(2)] if cuda else [None, None]

    def on(stream: Any) -> AbstractContextManager:
        return torch.cuda.stream(stream) if cuda else nullcontext()

    def apart(x1: Tensor, x2: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        F.conv2d(x1, w1, None, 1, 1)
        return F.conv2d(x2, w2, None, 1, 1)

    def side_by_side(x1: Tensor, x2: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        for stream, operands in zip(streams, ((x1, w1), (x2, w2)), strict=True):
            if stream is not None:
                stream.wait_stream(torch.cuda.current_stream())
            with on(stream):
                out = F.conv2d(*operands, None, 1, 1)
        for stream in streams:
            if stream is not None:
                torch.cuda.current_stream().wait_stream(stream)
        return out

    def grouped(x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, 1, 1, 1, 2)

    return {
        "one after the other": best_milliseconds(apart, *halves),
        "on two streams": best_milliseconds(side_by_side, *halves),
        "groups=2": best_milliseconds(grouped, x, w),
    }


def epilogues(visit: Visit) -> dict[str, Any]:
    """Which epilogues are right for ResNet-18 in which arithmetic, and their milliseconds."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    network = make_network(0, "resnet18").to(visit.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = images(2, visit.device)[0].contiguous(memory_format=torch.channels_last)
    found: dict[str, Any] = {
        f"by {epilogue}, {dtype}": Frozen(network, dtype, x).use(epilogue)
        for epilogue in get_args(Epilogue)
        for dtype in dtypes
    }
    for channels, side in ((64, 32), (256, 8)):
        x, residual, w = (
            torch.randn(shape, device=visit.device, dtype=torch.bfloat16).contiguous(
                memory_format=torch.channels_last
            )
            for shape in (
                (visit.batch, channels, side, side),
                (visit.batch, channels, side, side),
                (channels, channels, 3, 3),
            )
        )
        b = torch.zeros(channels, device=visit.device, dtype=torch.bfloat16)
        geometry = ([1, 1], [1, 1], [1, 1], 1)

        def plain(x: Tensor, residual: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return (F.conv2d(x, w, b, 1, 1) + residual).relu_()

        def fused(x: Tensor, residual: Tensor, w: Tensor, b: Tensor, g: Any = geometry) -> Tensor:
            return torch.cudnn_convolution_add_relu(x, w, residual, 1.0, b, *g)

        def ours(x: Tensor, residual: Tensor, w: Tensor, b: Tensor) -> Tensor:
            out = F.conv2d(x, w, None, 1, 1)
            add_epilogue(out, b, residual)
            return out

        for name, function in (("torch", plain), ("kernel", ours), ("cudnn", fused)):
            if name != "cudnn" or visit.cuda:
                ms = best_milliseconds(function, x, residual, w, b)
                found[f"{channels} channels, {name}, ms"] = ms
    return found


def layers(visit: Visit) -> dict[str, Any]:
    """The convolutions alone, and seconds an epoch of TRADES + ALP would take of them alone."""
    record = race(
        visit, what="layers", contestants="bf16/eager",
        batch_size=f"{visit.batch},{4 * visit.batch}",
    )  # fmt: skip
    return {"layers": record["layers"], "s an epoch": floors(record)}


def floors(record: dict[str, Any]) -> dict[str, float]:
    """Seconds an epoch of TRADES + ALP would take if only its convolutions took time."""
    found = {}
    for arch, batch in {(row["arch"], row["batch_size"]) for row in record["layers"]}:
        rows = [r for r in record["layers"] if (r["arch"], r["batch_size"]) == (arch, batch)]
        for precision in {row["precision"] for row in rows}:
            ms = step_floor([r for r in rows if r["precision"] == precision], 27, 24, 4)
            found[f"{arch}, batch {batch}, {precision}, s/epoch"] = 50 * ms / batch
    return found


@dataclass(frozen=True)
class Part:
    """function: from a visit to what it found; call: the visit of two that it belongs to; seconds:
    after which it is stopped.
    """

    name: str
    function: Callable[[Visit], dict[str, Any]]
    call: int
    seconds: float = 120
    needs_gpu: bool = False


# in the order of what is wanted most
PARTS = [
    Part("default command", default_command, 1, 90),
    Part("first steps", first_steps, 1, 90),
    Part("graph equals eager", graph_equals_eager, 1, 90, needs_gpu=True),
    Part("profile", profile, 1, 60),
    Part("plans", plans, 1, 90, needs_gpu=True),
    Part(
        "race",
        lambda visit: race(
            visit, quick=True,
            contestants=f"plain,mixed,fp32/eager,bf16/eager,{visit.fastest}",
        ),
        1,
    ),
    Part(
        "tests of the step",
        partial(tests, selected=["tests/gpu/test_step.py", "-k", "not compile"], seconds=100),
        1, needs_gpu=True,
    ),
    Part("attack iterations", attack_iterations, 2),
    Part("epilogues", epilogues, 2, 60),
    Part("batch norms", batch_norms, 2, 60),
    Part("layers", layers, 2, 90),
    Part(
        "evaluation",
        lambda visit: race(
            visit, quick=True, what="eval", batch_size=str(8 * visit.batch), steps=1,
            contestants=f"plain,mixed,{visit.fastest}",
        ),
        2,
    ),
    Part(
        "tests of kernels and captures",
        partial(tests, selected=["tests/gpu", "-k", "not test_step"], seconds=110),
        2, needs_gpu=True,
    ),
    Part(
        "wide network",
        lambda visit: race(
            visit, quick=True, arch=visit.wide_arch, steps=1,
            contestants=f"plain,mixed,{visit.fastest}",
        ),
        2,
    ),
    Part(
        "larger batches",
        lambda visit: race(
            visit, quick=True, batch_size=f"{2 * visit.batch},{8 * visit.batch}",
            contestants=f"mixed,{visit.fastest}",
        ),
        2,
    ),
    Part(
        "compiled",
        lambda visit: race(visit, quick=True, contestants="bf16/graph,bf16/compile+graph"),
        2, 150, needs_gpu=True,
    ),
    Part(
        "one and three peers",
        lambda visit: race(
            visit, quick=True, peers="trades;trades,alp,at",
            contestants=f"plain,mixed,{visit.fastest}",
        ),
        2,
    ),
    Part("streams", streams, 2),
    Part("grouped convolution", grouped_convolution, 2, 30),
    Part(
        "tests of compiling",
        partial(tests, selected=["tests/gpu/test_step.py", "-k", "compile"], seconds=150),
        2, 160, needs_gpu=True,
    ),
]  # fmt: skip
