"""`fastcat bench`: the plain loops of the papers' code and ours, alternately, in one process.

Each contestant gets batches of random images of the same size. After a warm-up they take turns, of
which the first step is not timed; medians with the spread go to the screen and, with versions and
hardware, into a JSON file. FLOPs are counted in an eager step, and set beside the rate of a plain
matrix product measured in the same run.
"""

import gc
import importlib.util
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from fastcat.benchmarks.layers import measure_layers
from fastcat.benchmarks.reference.loader import plain_loader
from fastcat.benchmarks.reference.mixed import MixedLoop, half_dtype
from fastcat.benchmarks.reference.plain import LOSSES, PlainLoop
from fastcat.device import make_device
from fastcat.engine import Engine, choose_engine
from fastcat.environment import environment
from fastcat.errors import InputError
from fastcat.evaluation import parse_attacks
from fastcat.evaluation.evaluate import survivors
from fastcat.files import write_text
from fastcat.loaders.dataset import Split
from fastcat.loaders.resident import ResidentLoader
from fastcat.models import canonical_arch, make_model
from fastcat.optim import FlatSGD
from fastcat.peer import Peer
from fastcat.peer_spec import PeerSpec, parse_peers
from fastcat.precision import DTYPES, Precision, make_precision
from fastcat.seeds import derive_seed
from fastcat.team import make_team
from fastcat.threat import ThreatModel

CLASSES, SIDE, CHANNELS = 10, 32, 3
EVALUATION_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time training steps and evaluation against the papers' loops."""

    arch: str = "resnet18"
    """Architectures, separated by commas."""
    peers: str = "trades,alp"
    """Methods of the peers; several teams are separated by semicolons."""
    batch_size: str = "128"
    """Images a step; several are separated by commas."""
    what: str = "train"
    """train, eval (PGD-20) and layers (each convolution alone), separated by commas."""
    contestants: str = "auto"
    """plain, mixed, and ours as PRECISION/ENGINE, separated by commas. auto: what suits."""
    repetitions: int = 5
    """Timed turns of each contestant."""
    steps: int | None = None
    """Steps a turn. None: 10 on a GPU, 1 on a CPU."""
    images: int = 50000
    """Images of an epoch, for the seconds an epoch takes."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the GPU if there is one."""
    threads: int | None = None
    """CPU threads. None: as PyTorch chooses."""
    out: Path | None = None
    """JSON file to write. None: a new one, bench-DATE-TIME.json."""
    compare: Path | None = None
    """An earlier JSON file; what changed since is shown."""

    def __post_init__(self) -> None:
        for name in ("repetitions", "steps", "images", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, expected at least 1")
        if not set(self.what.split(",")) <= {"train", "eval", "layers"}:
            raise InputError(f"what is {self.what!r}, expected some of train,eval,layers")
        if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", self.batch_size):
            raise InputError(f"batch size is {self.batch_size!r}, expected numbers like 128,256")
        for arch in self.arch.split(","):
            canonical_arch(arch)
            for peers in self.peers.split(";"):
                for spec in parse_peers(peers, arch):
                    if spec.method not in LOSSES:
                        raise InputError(
                            f"the reference loops know no method {spec.method!r}: expected some of "
                            f"{', '.join(LOSSES)}"
                        )
        if self.out is not None and self.out.exists():
            raise InputError(f"{self.out} exists already: choose another --out")


class Plain:
    """One of the reference loops, fed by worker processes as published, where torchvision is there,
    else from a batch on the device.
    """

    def __init__(
        self,
        loop: type[PlainLoop],
        specs: list[PeerSpec],
        batch: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        models = [make_network(k, spec.arch).to(device) for k, spec in enumerate(specs)]
        self.loop = loop(models, [spec.method for spec in specs])
        self.device = device
        self.x, self.y = images(batch, device)
        self.batches: Iterator[Sequence[Tensor]] = itertools.repeat((self.x, self.y))
        if workers is None:
            # as published where there are cores for it
            workers = min(4, os.cpu_count() or 1)
        if workers and importlib.util.find_spec("torchvision") is not None:
            pixels, labels = photographs()
            loader = plain_loader(pixels, labels.tolist(), batch, workers)
            self.batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def train(self) -> None:
        x, y = next(self.batches)
        self.loop.step(x.to(self.device), y.to(self.device))

    def eval(self) -> None:
        self.loop.evaluate(self.x, self.y, EVALUATION_STEPS)


class Ours:
    """A team on a fixed set of resident images."""

    def __init__(
        self,
        precision: Precision,
        engine: str,
        specs: list[PeerSpec],
        batch: int,
        device: torch.device,
        lanes: bool = True,
        say: Callable[[str], object] = print,
    ) -> None:
        x, y = images(batch, torch.device("cpu"))
        pixels = (x * 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
        self.loader = ResidentLoader(
            Split(pixels, y.numpy()),
            torch.arange(batch),
            batch_size=batch,
            device=device,
            shuffle=True,
            crop_pad=4,
            flip=True,
        )
        peers = []
        for k, spec in enumerate(specs):
            model = make_network(k, spec.arch).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            optimizer = FlatSGD(model, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=False)
            peers.append(Peer(f"{k}-{spec.method}", spec.arch, model, spec.objective, optimizer))
        self.threat = ThreatModel()
        (self.inputs,) = self.loader.inputs()
        self.team = make_team(
            peers,
            collab="cat",
            alpha=None,
            threat=self.threat,
            precision=precision,
            classes=CLASSES,
            example=self.loader.gather(*self.inputs).x[:2],
            side_by_side=lanes,
        )
        for remark in self.team.remarks:
            say(remark)
        self.engine = Engine(self.team, self.loader.gather, batch, engine, say)
        self.like = self.loader.like(self.inputs)
        self.done = 0

    def train(self) -> None:
        self.engine.step(self.inputs, self.like, derive_seed(0, "bench", self.done), 0.01)
        self.done += 1

    def eval(self) -> None:
        batch = self.loader.gather(*self.inputs)
        generator = torch.Generator(batch.x.device).manual_seed(0)
        for k in range(len(self.team.peers)):
            network, robust = self.engine.judge(k)
            for attack in parse_attacks(f"clean,pgd{EVALUATION_STEPS}"):
                with self.team.precision.autocast():
                    survivors(
                        network, batch.x, batch.y, attack, self.threat, generator, robust
                    ).sum().item()


def make_network(k: int, arch: str) -> torch.nn.Module:
    torch.manual_seed(k)
    return make_model(arch, CLASSES, CHANNELS)


@cache
def photographs() -> tuple[np.ndarray, np.ndarray]:
    """As many random images as CIFAR-10 has: uint8 [N, H, W, C], and labels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (50000, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    return pixels, generator.integers(CLASSES, size=len(pixels))


def images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (batch, CHANNELS, SIDE, SIDE), generator=generator) / 255
    return x.to(device), torch.randint(CLASSES, (batch,), generator=generator).to(device)


@contextmanager
def arithmetic(name: str, device: torch.device) -> Iterator[Precision | None]:
    """torch's global switches as contestant `name` finds them in a program of its own."""
    reference = name in ("plain", "mixed")
    # PyTorch's defaults: TF32 in convolutions, not in matrix products
    precision = None if reference else make_precision(name.partition("/")[0], device)
    if reference:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not reference
    yield precision


def make_contestant(
    name: str, specs: list[PeerSpec], batch: int, device: torch.device, **options: Any
) -> Plain | Ours:
    with arithmetic(name, device) as precision:
        if precision is None:
            loop = {"plain": PlainLoop, "mixed": MixedLoop}[name]
            return Plain(loop, specs, batch, device, **options)
        return Ours(precision, name.partition("/")[2], specs, batch, device, **options)


def contestants_for(text: str, device: torch.device) -> list[str]:
    """The contestants' names. Raises InputError for one that cannot be had here."""
    if text == "auto":
        if device.type == "cuda":
            return ["plain", "mixed", "bf16/eager", "bf16/graph"]
        return ["plain", "mixed", "fp32/eager", "bf16/eager", "bf16/compile"]
    names = []
    for name in text.split(","):
        precision, slash, engine = name.partition("/")
        if slash and precision in DTYPES:
            names.append(f"{precision}/{choose_engine(engine, device)}")
        elif name in ("plain", "mixed"):
            names.append(name)
        else:
            raise InputError(
                f"unknown contestant {name!r}: expected plain, mixed, or PRECISION/ENGINE like "
                "bf16/eager"
            )
    return list(dict.fromkeys(names))


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


def arithmetic_of(name: str, device: torch.device) -> str:
    """What the contestant's convolutions compute in."""
    if name == "plain":
        return "tf32" if device.type == "cuda" else "fp32"
    if name == "mixed":
        return {torch.bfloat16: "bf16", torch.float16: "fp16"}[half_dtype(device)]
    return name.partition("/")[0]


def matmul_tflops(precision: str, device: torch.device) -> float:
    """The rate of a large square matrix product of random numbers, best of five."""
    n = 8192 if device.type == "cuda" else 2048
    make_precision(precision, device)
    a, b = (torch.randn(n, n, device=device).to(DTYPES[precision]) for _ in range(2))
    a @ b
    best = min(milliseconds(lambda: a @ b, 3, device) for _ in range(5))
    return 2 * n**3 / best / 1e9


def _fused_conv_flop(x_shape: Any, weight_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


def copy_tb_per_s(device: torch.device) -> float:
    """Bytes read and written by a copy that no cache holds, best of five."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source).copy_(source)
    best = min(milliseconds(lambda: target.copy_(source), 3, device) for _ in range(5))
    return 2 * source.numel() * source.element_size() / best / 1e9


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


def race(
    names: list[str],
    arch: str,
    peers: str,
    batch: int,
    what: str,
    config: BenchConfig,
    device: torch.device,
    matmul: dict[str, float],
) -> list[dict[str, Any]]:
    """One result for each contestant, on one team and batch size."""
    specs = list(parse_peers(peers, arch))
    steps = config.steps or (10 if device.type == "cuda" else 1)
    turns: dict[str, Callable[[], object]] = {}
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        eager = name if "/" not in name else f"{name.partition('/')[0]}/eager"
        with arithmetic(name, device):
            fixed = {} if "/" in name else {"workers": 0}
            flop = flop_per_image(
                getattr(make_contestant(eager, specs, 2, device, **fixed), what), 2
            )
            photographs()
            memory = PeakMemory(device)
            contestant = make_contestant(name, specs, batch, device)
            turns[name] = getattr(contestant, what)
            # the second shows the memory of a step once compilers and searches are done
            turns[name]()
            turns[name]()
            synchronize(device)
        engine = contestant.engine.name if isinstance(contestant, Ours) else ""
        results[name] = {
            "what": what,
            "arch": arch,
            "peers": peers,
            "batch_size": batch,
            "contestant": name,
            "arithmetic": arithmetic_of(name, device),
            "engine": engine,
            "gflop_per_image": flop / 1e9,
            "peak_memory_mib": memory.mib(),
        }
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(config.repetitions):
        for name in names:
            with arithmetic(name, device):
                # caches and freed memory are now the others'
                turns[name]()
                times[name].append(milliseconds(turns[name], steps, device))
    for name, result in results.items():
        ms = median(times[name])
        tflops = result["gflop_per_image"] * batch / ms  # GFLOP a millisecond
        result |= {
            "ms": ms,
            "ms_low": min(times[name]),
            "ms_high": max(times[name]),
            "images_per_second": 1000 * batch / ms,
            "seconds_per_epoch": config.images / batch * ms / 1000,
            "tflops": tflops,
            "share_of_matmul": tflops / matmul[arithmetic_of(name, device)],
        }
    for result in results.values():
        if "plain" in results:
            result["speedup"] = results["plain"]["ms"] / result["ms"]
    return list(results.values())


COLUMNS = (
    ("contestant", "{contestant}"),
    ("ms/step", "{ms:.1f}"),
    ("low..high", "{ms_low:.1f}..{ms_high:.1f}"),
    ("images/s", "{images_per_second:.1f}"),
    ("s/epoch", "{seconds_per_epoch:.1f}"),
    ("peak MiB", "{peak_memory_mib:.0f}"),
    ("GFLOP/image", "{gflop_per_image:.1f}"),
    ("TFLOP/s", "{tflops:.3f}"),
    ("of matmul", "{share_of_matmul:.0%}"),
    ("speedup", "{speedup:.2f}x"),
)

LAYER_COLUMNS = (
    ("in, out, kernel, stride, padding, side", "{shape}"),
    ("count", "{count}"),
    ("pass", "{pass}"),
    ("ms", "{ms:.3f}"),
    ("TFLOP/s", "{tflops:.3f}"),
    ("FLOP/byte", "{flop_per_byte:.0f}"),
)


def table(results: list[dict[str, Any]], columns: Sequence[tuple[str, str]] = COLUMNS) -> str:
    """Results as aligned text; what was not measured is a dash."""

    def cell(form: str, result: dict[str, Any]) -> str:
        try:
            return form.format(**result)
        except (KeyError, TypeError):
            return "-"

    rows = [[head for head, _ in columns]]
    rows += [[cell(form, result) for _, form in columns] for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    )


def compared(results: list[dict[str, Any]], path: Path) -> str:
    """What became of each result of an earlier file. Raises InputError for another kind of file."""
    keys = ("what", "arch", "peers", "batch_size", "contestant")
    try:
        earlier = {
            tuple(r[key] for key in keys): r["ms"] for r in json.loads(path.read_text())["results"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot compare with {path}: it is no file of `fastcat bench`") from error
    lines = []
    for result in results:
        key = tuple(result[key] for key in keys)
        name = " ".join(map(str, key))
        if key in earlier:
            change = result["ms"] / earlier[key] - 1
            lines.append(f"{name}: {earlier[key]:.1f} -> {result['ms']:.1f} ms, {change:+.1%}")
        else:
            lines.append(f"{name}: not in {path}")
    return "\n".join(lines)


def bench(config: BenchConfig) -> dict[str, Any]:
    """Run all races, print their tables and write the JSON file; what it holds."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = make_device(config.device)
    names = contestants_for(config.contestants, device)
    out = config.out or Path(time.strftime("bench-%Y%m%d-%H%M%S.json"))
    if config.compare is not None:
        compared([], config.compare)  # read before hours are spent
    matmul = {p: matmul_tflops(p, device) for p in {arithmetic_of(n, device) for n in names}}
    rates = ", ".join(f"{precision} {rate:.3g} TFLOP/s" for precision, rate in matmul.items())
    copy = copy_tb_per_s(device)
    print(f"on this {device.type}: matrix products {rates}; copy {copy:.3g} TB/s")
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {name: str(value) for name, value in asdict(config).items()},
        "matmul_tflops": matmul,
        "copy_tb_per_s": copy,
        "results": [],
        "layers": [],
    }
    whats = config.what.split(",")
    for arch, batch in itertools.product(
        config.arch.split(","), map(int, config.batch_size.split(","))
    ):
        for peers, what in itertools.product(config.peers.split(";"), whats):
            if what != "layers":
                print(f"\n{what}: {peers} on {arch}, batch {batch}, {CHANNELS}x{SIDE}x{SIDE}")
                results = race(names, arch, peers, batch, what, config, device, matmul)
                print(table(results))
                record["results"] += results
                # after each race, so that an interruption loses only the race under way
                write_text(out, json.dumps(record, indent=2) + "\n")
        if "layers" in whats:
            for precision in matmul:
                print(f"\nconvolutions of {arch} alone, batch {batch}, {precision}")
                make_precision(precision, device)
                layers = measure_layers(
                    arch, precision, batch, device,
                    lambda function: min(milliseconds(function, 5, device) for _ in range(4)),
                    SIDE,
                )  # fmt: skip
                print(table(layers, LAYER_COLUMNS))
                record["layers"] += layers
            write_text(out, json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {out}")
    if config.compare is not None:
        print(f"\nsince {config.compare}:\n{compared(record['results'], config.compare)}")
    return record
