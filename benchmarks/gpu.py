"""Everything that only a GPU can show, in one run and one JSON file: `make gpu`.

The GPU tests, the races of `fastcat bench`, and the questions of benchmarks/NOTES.md: what the
convolutions reach alone, what each idea gains by itself, whether a graph equals eager. Needs torch,
triton, numpy and pytest. What does not fit into the time is left out and named; a part that fails
costs only itself. `--device cpu --batch-size 4` rehearses all that does not need a GPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
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
from fastcat.benchmarks.measure import milliseconds
from fastcat.benchmarks.throughput import bench
from fastcat.config.peers import parse_peers
from fastcat.environment import environment
from fastcat.files import write_text
from fastcat.kernels.epilogue import epilogue as add_epilogue
from fastcat.step.engine import CudaGraph, static_inputs

ROOT = Path(__file__).resolve().parents[1]


class Report:
    """Runs one part after the other while there is time and keeps what they return."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.deadline = time.monotonic() + seconds
        self.record: dict[str, Any] = {
            "date": date.today().isoformat(),
            "environment": environment(),
            "parts": {},
        }

    def part(self, name: str, function: Callable[..., Any], *args: Any, **settings: Any) -> None:
        begin = time.monotonic()
        if begin > self.deadline:
            result: Any = {"left_out": "no time"}
        else:
            try:
                result = function(*args, **settings)
            except Exception as error:  # the other parts are worth having
                traceback.print_exc()
                result = {"failed": f"{type(error).__name__}: {error}"}
        seconds = round(time.monotonic() - begin, 1)
        print(f"== {name}: {seconds} s {json.dumps(result)[:2000]}", flush=True)
        self.record["parts"][name] = {"seconds": seconds, "result": result}
        write_text(self.path, json.dumps(self.record, indent=2) + "\n")


def tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", "-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+") as output:
        try:
            done: int | str = subprocess.run(
                [*command, "tests/gpu"], cwd=ROOT, stdout=output, stderr=output, timeout=240
            ).returncode
        except subprocess.TimeoutExpired:
            done = "stopped after 240 s"
        output.seek(0)
        lines = output.read().splitlines()
    print("\n".join(lines[-60:]))
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit": done, "failures": failures, "summary": lines[-1:]}


def race(**settings: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return bench(BenchConfig(out=Path(folder) / "bench.json", **settings))


def fastest(device: torch.device) -> str:
    """The contestant that is meant for a GPU; on a CPU one that stands in for it."""
    return "bf16/graph" if device.type == "cuda" else "bf16/eager"


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


def attack_iteration(kind: str, arch: str, batch: int, device: torch.device) -> dict[str, float]:
    """One PGD step of one network, as the model or as a kind of twin; on a GPU inside a graph, so
    that launches cost nothing.
    """
    set_arithmetic(fastest(device), device)
    model = make_network(0, arch).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = images(batch, device)
    x = x.contiguous(memory_format=torch.channels_last)
    threat = ThreatModel(steps=1)
    noise = threat.draw_noise("uniform", x, None)[None, None]
    network = ATTACKED[kind](model, x[:2])

    def iterate(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return attack_all([network], [PGD()], x, y, threat, noise)

    return {"ms": milliseconds(graphed(iterate, x, y, noise), 10, device)}


def graphed(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], object]:
    """The function on these tensors as a CUDA graph, or as it is on a CPU."""
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


def lanes(arch: str, batch: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a step with a stream for each peer, and with one stream for all."""
    specs = list(parse_peers("trades,alp", arch))
    found = {}
    for side_by_side in (True, False):
        contestant = make_contestant(fastest(device), specs, batch, device, lanes=side_by_side)
        contestant.train()
        contestant.train()
        times = [milliseconds(contestant.train, 5, device) for _ in range(5)]
        found["a stream each" if side_by_side else "one stream"] = sorted(times)[2]
    return found


def grouped_convolution(batch: int, device: torch.device) -> dict[str, float]:
    """Two peers' 256-channel convolutions one after the other, on two streams, and as groups=2."""
    x, w = (
        torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(
            memory_format=torch.channels_last
        )
        for shape in ((batch, 512, 8, 8), (512, 256, 3, 3))
    )
    halves = [
        part.contiguous(memory_format=torch.channels_last)
        for part in (*x.chunk(2, 1), *w.chunk(2, 0))
    ]
    cuda = device.type == "cuda"
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
        "one after the other": milliseconds(graphed(apart, *halves), 20, device),
        "on two streams": milliseconds(graphed(side_by_side, *halves), 20, device),
        "groups=2": milliseconds(graphed(grouped, x, w), 20, device),
    }


def fused_epilogue(batch: int, device: torch.device) -> dict[str, Any]:
    """Which epilogues are right for ResNet-18 in which arithmetic, and their milliseconds."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    network = make_network(0, "resnet18").to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = images(2, device)[0].contiguous(memory_format=torch.channels_last)
    found: dict[str, Any] = {
        f"{epilogue}, {dtype}": Frozen(network, dtype, x).use(epilogue)
        for epilogue in get_args(Epilogue)
        for dtype in dtypes
    }
    for channels, side in ((64, 32), (256, 8)):
        x, residual, w = (
            torch.randn(shape, device=device, dtype=torch.bfloat16).contiguous(
                memory_format=torch.channels_last
            )
            for shape in (
                (batch, channels, side, side),
                (batch, channels, side, side),
                (channels, channels, 3, 3),
            )
        )
        b = torch.zeros(channels, device=device, dtype=torch.bfloat16)
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
            ms = milliseconds(graphed(function, x, residual, w, b), 20, device)
            found[f"{channels} channels, {name}, ms"] = ms
    return found


def graph_equals_eager(arch: str, batch: int, device: torch.device, steps: int = 20) -> dict:
    """Largest relative difference of the weights after some steps with the same noise."""
    deterministic = torch.backends.cudnn.deterministic
    specs = list(parse_peers("trades,alp", arch))
    found = {}
    try:
        for precision in ("fp32", "bf16"):
            ends = []
            for engine in ("eager", "graph"):
                contestant = make_contestant(f"{precision}/{engine}", specs, batch, device)
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


def floors(record: dict[str, Any]) -> dict[str, float]:
    """Seconds an epoch of TRADES + ALP would take if only its convolutions took time."""
    found = {}
    for arch, batch in {(row["arch"], row["batch_size"]) for row in record["layers"]}:
        rows = [r for r in record["layers"] if (r["arch"], r["batch_size"]) == (arch, batch)]
        for precision in {row["precision"] for row in rows}:
            ms = step_floor([r for r in rows if r["precision"] == precision], 27, 24, 4)
            found[f"{arch}, batch {batch}, {precision}, s/epoch"] = 50 * ms / batch
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--wide-arch", default="wrn-34-10")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda, batch, arch = device.type == "cuda", options.batch_size, options.arch
    if cuda and not torch.cuda.is_available():
        sys.exit("there is no GPU that PyTorch can use: `--device cpu --batch-size 4` rehearses")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(options.out, 60 * options.minutes)
    settings: dict[str, Any] = {"arch": arch, "device": options.device}
    if not cuda:
        settings |= {"repetitions": 1, "steps": 1}

    report.part(
        "race", race, batch_size=str(batch),
        contestants=f"plain,mixed,fp32/eager,bf16/eager,{fastest(device)}", **settings,
    )  # fmt: skip
    if cuda:
        report.part("graph equals eager", graph_equals_eager, arch, batch, device)
        report.part("tests", tests)
    for kind in ATTACKED:
        report.part(f"attack iteration, {kind}", attack_iteration, kind, arch, batch, device)
    for size in (1, 2, 4):
        report.part(f"lanes, batch {batch * size}", lanes, arch, batch * size, device)
    report.part("grouped convolution, ms", grouped_convolution, batch, device)
    if cuda:
        report.part("fused epilogue", fused_epilogue, batch, device)
    report.part(
        "layers", race, batch_size=f"{batch},{4 * batch}", what="layers",
        contestants="bf16/eager", **settings,
    )  # fmt: skip
    layers = report.record["parts"]["layers"]["result"]
    if "layers" in layers:
        report.part("floor of the convolutions", floors, layers)
    report.part(
        "evaluation", race, batch_size=str(8 * batch), what="eval",
        contestants=f"plain,mixed,{fastest(device)}", **settings,
    )  # fmt: skip
    report.part(
        "larger batches", race, batch_size=f"{2 * batch},{4 * batch},{8 * batch}",
        contestants=f"mixed,{fastest(device)}", **settings,
    )  # fmt: skip
    report.part(
        "one and three peers", race, batch_size=str(batch), peers="trades;trades,alp,at",
        contestants=f"plain,mixed,{fastest(device)}", **settings,
    )  # fmt: skip
    report.part(
        "wide network", race, batch_size=str(batch), contestants=f"plain,mixed,{fastest(device)}",
        **settings | {"arch": options.wide_arch, "steps": 1},
    )  # fmt: skip
    if cuda:
        report.part(
            "compiled", race, batch_size=str(batch),
            contestants="bf16/graph,bf16/compile+graph", **settings,
        )  # fmt: skip
    print(f"written to {options.out}")
    failed = [name for name, part in report.record["parts"].items() if "failed" in part["result"]]
    tested = report.record["parts"].get("tests", {}).get("result", {}).get("exit", 0)
    sys.exit(f"failed: {', '.join(failed) or 'tests'}" if failed or tested else 0)


if __name__ == "__main__":
    main()
