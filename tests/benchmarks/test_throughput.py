"""`fastcat bench`: what it measures, writes, compares and refuses."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcat.benchmarks import throughput
from fastcat.benchmarks.config import BenchConfig
from fastcat.benchmarks.contestants import Ours, Plain, contestants_for, make_contestant
from fastcat.benchmarks.layers import measure_layers, shapes_of, step_floor
from fastcat.benchmarks.measure import flop_per_image
from fastcat.benchmarks.methods import METHODS, reference_for
from fastcat.benchmarks.reference.at import AtLoop
from fastcat.benchmarks.reference.awp import AtAwpLoop, TradesAwpLoop
from fastcat.benchmarks.reference.distill import RsladLoop
from fastcat.benchmarks.reference.fast import FastLoop, NFgsmLoop
from fastcat.benchmarks.reference.mat import MatLoop
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.benchmarks.reference.squeeze import SqueezeLoop
from fastcat.benchmarks.reference.trades import TradesLoop
from fastcat.benchmarks.reference.union import BALLS, UnionLoop
from fastcat.benchmarks.tables import table
from fastcat.benchmarks.throughput import bench, race
from fastcat.cli import main
from fastcat.config.peers import parse_peers
from fastcat.errors import InputError
from fastcat.loaders.augmentation import Augmentation
from tests.harness import tiny

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a race that takes seconds."""
    tiny.register()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(throughput, "matmul_tflops", lambda *_: 0.5)
    monkeypatch.setattr(throughput, "copy_tb_per_s", lambda *_: 0.01)
    return {"arch": "tiny", "batch_size": "4", "device": "cpu", "repetitions": 2, "threads": 1}


@pytest.mark.slow
def test_a_race_writes_what_it_measured(small: dict[str, Any], tmp_path: Path) -> None:
    record = bench(
        BenchConfig(
            **small,
            contestants="plain,mixed,fp32/eager,bf16/eager",
            what="train,eval,layers",
            out=tmp_path / "bench.json",
        )
    )
    assert json.loads((tmp_path / "bench.json").read_text()) == json.loads(json.dumps(record))
    assert record["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert [(r["what"], r["contestant"]) for r in record["results"]] == [
        (what, name)
        for what in ("train", "eval")
        for name in ("plain", "mixed", "fp32/eager", "bf16/eager")
    ]
    for result in record["results"]:
        assert 0 < result["ms_low"] <= result["ms"] <= result["ms_high"]
        assert result["images_per_second"] == pytest.approx(4000 / result["ms"])
        assert result["seconds_per_epoch"] == pytest.approx(12500 * result["ms"] / 1000)
        tflops = result["gflop_per_image"] * 4e9 / (result["ms"] / 1000) / 1e12
        assert result["tflops"] == pytest.approx(tflops)
        assert result["share_of_matmul"] == pytest.approx(tflops / 0.5)
    plain, mixed, ours, _ = record["results"][:4]
    assert plain["speedup"] == 1
    assert ours["speedup"] == pytest.approx(plain["ms"] / ours["ms"])
    assert mixed["gflop_per_image"] == plain["gflop_per_image"]
    assert ours["gflop_per_image"] < 0.75 * plain["gflop_per_image"]
    assert {row["pass"] for row in record["layers"]} == {
        "forward", "backward_input", "backward_weight"
    }  # fmt: skip


def _busy_children() -> int:
    """How many processes that only keep a CPU busy are ours."""
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # one that has just ended
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            count += parent == str(os.getpid()) and "sum(range" in (folder / "cmdline").read_text()
    return count


@pytest.mark.slow
def test_a_race_beside_busy_processes(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a race that is not beside them, or that leaves them running."""
    settings = small | {"contestants": "plain,fp32/eager", "repetitions": 1}
    seen = []
    take_turns = throughput._take_turns

    def watched(*arguments: Any) -> Any:
        seen.append(_busy_children())
        return take_turns(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "_take_turns", watched)
        record = bench(BenchConfig(**settings, beside="0,2", out=tmp_path / "bench.json"))
    assert seen == [0, 2]
    assert _busy_children() == 0
    results = record["results"]
    assert [(r["beside"], r["contestant"]) for r in results] == [
        (0, "plain"), (0, "fp32/eager"), (2, "plain"), (2, "fp32/eager")
    ]  # fmt: skip
    for quiet, busy in zip(results[:2], results[2:], strict=True):
        assert quiet["slowdown"] == 1
        assert busy["slowdown"] == pytest.approx(busy["ms"] / quiet["ms"])
    printed = capsys.readouterr().out
    assert f"{results[3]['slowdown']:.2f}x" in printed
    bench(BenchConfig(**settings, compare=tmp_path / "bench.json"))
    printed = capsys.readouterr().out
    assert f"tiny trades,alp 4 plain: {results[0]['ms']:.1f} -> " in printed


@pytest.mark.parametrize("beside", ["-1", "1.5", "", "0,,1", "1000"])
def test_beside_is_a_list_of_numbers(beside: str) -> None:
    with pytest.raises(InputError, match="beside is"):
        BenchConfig(beside=beside)


@pytest.mark.slow
def test_methods_race_against_the_loops_of_their_papers(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["st", "at-awp", "mat"]
    settings = small | {"what": "methods", "methods": ",".join(methods), "steps": 1}
    record = bench(BenchConfig(**settings, contestants="fp32/eager", out=tmp_path / "first.json"))
    printed = capsys.readouterr().out.splitlines()
    results = record["results"]
    assert [(r["method"], r["peers"], r["contestant"]) for r in results] == [
        (name, peers, contestant)
        for name, peers in (
            ("st", "st"), ("at-awp", "at:awp=0.01"), ("mat", "boosted,boosted --collab mat"),
        )
        for contestant in ("plain", "fp32/eager")
    ]  # fmt: skip
    for plain, ours in zip(results[::2], results[1::2], strict=True):
        assert ours["plain_ms"] == plain["ms"]
        assert ours["speedup"] == pytest.approx(plain["ms"] / ours["ms"])
        assert ours["speedup_low"] <= ours["speedup"] <= ours["speedup_high"]
        assert (plain["speedup_low"], plain["speedup_high"]) == (1, 1)
        # of MAT nothing is wasted; of ST it depends on the images
        waste = plain["gflop_per_image"] / ours["gflop_per_image"]
        assert ours["method"] != "mat" or waste == pytest.approx(1)
        assert ours["method"] != "at-awp" or waste > 1.3
        (row,) = (line.split() for line in printed if line.split()[:1] == [ours["method"]])
        assert row[-3:] == [
            f"{ours['ms']:.1f}",
            f"{ours['speedup']:.2f}x",
            f"{ours['speedup_low']:.2f}..{ours['speedup_high']:.2f}",
        ]
    settings |= {"methods": "mat", "contestants": "fp32/eager"}
    bench(BenchConfig(**settings, compare=tmp_path / "first.json"))
    printed = capsys.readouterr().out
    before = results[-1]["ms"]
    name = "train tiny boosted,boosted --collab mat 4 fp32/eager"
    assert f"{name}: {before:.1f} -> " in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("peers", "collab", "loop", "settings"),
    [
        ("natural", "cat", PlainLoop, {}),
        ("trades", "mat", TradesLoop, {}),
        ("trades:awp=0", "cat", TradesLoop, {}),
        ("trades:beta=3:awp=0.1", "cat", TradesAwpLoop, {"gamma": 0.1}),
        ("at:awp=0.2", "cat", AtAwpLoop, {"gamma": 0.2}),
        ("at", "cat", AtLoop, {}),
        ("st:beta=2", "cat", SqueezeLoop, {}),
        ("trades,alp", "cat", PlainLoop, {}),
        ("trades,alp,at", "cat", PlainLoop, {}),
        ("boosted,trades", "mat", MatLoop, {}),
        ("boosted,boosted", "mat-mp", MatLoop, {}),
        ("fast", "cat", FastLoop, {}),
        ("fast:variant=n", "cat", NFgsmLoop, {}),
        ("at:threat=max", "cat", UnionLoop, {"threats": ["max"]}),
        ("rslad,teacher:weights=any", "none", RsladLoop, {}),
    ],
)
def test_peers_find_the_loop_of_their_paper(
    peers: str, collab: str, loop: type, settings: dict[str, Any]
) -> None:
    specs = list(parse_peers(peers, "resnet18"))
    assert reference_for(specs, collab) == (loop, settings)
    tiny.register()
    specs = list(parse_peers(peers, "tiny"))
    contestant = make_contestant("mixed", specs, 2, CPU, collab, workers=0)
    assert isinstance(contestant, Plain)
    assert isinstance(contestant.loop, loop)


def test_every_method_has_its_own_row() -> None:
    """Catches a row that another one hides."""
    for name, method in METHODS.items():
        specs = parse_peers(method.peers, "resnet18")
        assert reference_for(specs, method.collab)[0] is method.loop, name


def test_ours_collaborate_as_they_are_told() -> None:
    tiny.register()
    specs = list(parse_peers("boosted,boosted", "tiny"))
    teams = [make_contestant("fp32/eager", specs, 2, CPU, collab).team for collab in ("cat", "mat")]  # type: ignore[union-attr]
    reads = [{(cell.peer, cell.view) for cell in team.blueprint.cells} for team in teams]
    assert ((0, "adv1") in reads[0], (0, "clean") in reads[0]) == (True, False)
    assert ((0, "adv1") in reads[1], (0, "clean") in reads[1]) == (False, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("fast", 6, 5),
        ("n-fgsm", 5, 5),
        ("pgd-cw", 66, 46),
        ("at-max", 126, 66),
        ("at-msd", 63, 53),
        ("rslad", 27, 27),
        ("iad", 31, 28),
        # the natural peer is forwarded for the attack and again, with a graph, for the loss
        ("act", 26, 27),
    ],
)
def test_the_race_is_one_of_the_same_mathematics(name: str, theirs: int, ours: int) -> None:
    """By FLOPs, up to the gradient of the first layer; catches steps or norms of one side alone."""
    tiny.register()
    method = METHODS[name]
    specs = list(parse_peers(method.peers, "tiny"))
    plain, team = (
        flop_per_image(make_contestant(side, specs, 2, CPU, method.collab, **options).train, 2)
        for side, options in (("plain", {"workers": 0}), ("fp32/eager", {}))
    )
    assert plain / team == pytest.approx(theirs / ours, rel=0.02)


def test_ours_are_attacked_as_the_loop_is() -> None:
    """Catches a race of several norms against one, and of other radii and steps."""
    tiny.register()
    method = METHODS["mat-mp-max"]
    specs = list(parse_peers(method.peers, "tiny"))
    plain, ours = (
        make_contestant(name, specs, 2, CPU, method.collab) for name in ("plain", "fp32/eager")
    )
    assert isinstance(plain, Plain)
    assert isinstance(ours, Ours)
    threats = [peer.threats for peer in ours.team.peers]
    assert [one.way or one.norms[0] for one in threats] == plain.loop.threats  # type: ignore[attr-defined]
    for ball, model in zip(BALLS, threats[0].models, strict=True):
        assert ball == (model.norm, model.eps, model.step, model.steps)
    assert [one.models for one in threats[1:]] == [(model,) for model in threats[0].models]


@pytest.mark.slow
def test_the_first_step_of_a_turn_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a time that pays for the caches and the memory that the other contestant took."""
    log: list[str] = []

    class Runner:
        def __init__(self, name: str, *_: Any, **__: Any) -> None:
            self.name = name

        def train(self) -> None:
            log.append(self.name)

    def timed(step: Callable[[], object], steps: int, device: torch.device) -> float:
        log.append("begin")
        for _ in range(steps):
            step()
        log.append("end")
        return 1.0

    monkeypatch.setattr(throughput, "make_contestant", Runner)
    monkeypatch.setattr(throughput, "flop_per_image", lambda *_: 1.0)
    monkeypatch.setattr(throughput, "milliseconds", timed)
    config = BenchConfig(repetitions=2, steps=3)
    race(
        ["plain", "mixed"], "resnet18", "at", "cat", 4, "train", config, CPU, {"fp32": 1, "bf16": 1}
    )
    turns = [[name, "begin", name, name, name, "end"] for name in ("plain", "mixed")] * 2
    assert log[-24:] == [entry for turn in turns for entry in turn]


def test_all_contestants_have_the_same_images() -> None:
    """To the bit. Catches a rounding on the way from pixels to numbers, or back."""
    tiny.register()
    specs = list(parse_peers("at", "tiny"))
    plain = make_contestant("plain", specs, 64, CPU, workers=0)
    ours = make_contestant("fp32/eager", specs, 64, CPU)
    assert isinstance(plain, Plain)
    assert isinstance(ours, Ours)
    unchanged = Augmentation().draw(torch.arange(64), 32, 32, seed=0, epoch=0)
    batch = ours.loader.gather(unchanged)
    assert torch.equal(batch.x, plain.x)
    assert torch.equal(batch.y, plain.y)
    assert plain.x.is_contiguous()


@pytest.mark.slow
def test_comparison_with_an_earlier_file(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bench(BenchConfig(**small, contestants="fp32/eager", out=tmp_path / "first.json"))
    first["results"][0]["ms"] *= 2
    (tmp_path / "first.json").write_text(json.dumps(first))
    capsys.readouterr()
    bench(
        BenchConfig(
            **small,
            contestants="fp32/eager,bf16/eager",
            out=tmp_path / "second.json",
            compare=tmp_path / "first.json",
        )
    )
    printed = capsys.readouterr().out
    before = first["results"][0]["ms"]
    assert f"train tiny trades,alp 4 fp32/eager: {before:.1f} -> " in printed
    assert f"train tiny trades,alp 4 bf16/eager: not in {tmp_path / 'first.json'}" in printed


@pytest.mark.slow
def test_a_file_is_never_overwritten_and_gets_a_name_of_its_own(
    small: dict[str, Any], tmp_path: Path
) -> None:
    bench(BenchConfig(**small, contestants="fp32/eager"))
    (written,) = tmp_path.glob("bench-*.json")
    with pytest.raises(InputError, match="exists already"):
        BenchConfig(**small, out=written)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--contestants fast", "unknown contestant 'fast'"),
        ("--contestants bf16/fast", "unknown engine 'fast'"),
        ("--contestants bf16/graph --device cpu", "needs a GPU"),
        ("--batch-size 32,x", "expected numbers like 128,256"),
        ("--batch-size 0", "expected numbers like 128,256"),
        ("--batch-size 32,60000", "expected at most 50000"),
        ("--what speed", "expected some of train,eval,methods,layers,loaders"),
        ("--peers tradez", "unknown method"),
        ("--peers st,at", "no reference loop of 'st,at': expected st, at:awp=0.01"),
        ("--peers trades:awp=0.1,at", "no reference loop of 'trades:awp=0.1,at'"),
        ("--peers st:bn=eval", "loop of 'st' attacks as published"),
        ("--peers trades,alp --collab none", "no reference loop of 'trades,alp --collab none'"),
        ("--peers at,teacher:weights=a", "no reference loop of 'at,teacher'"),
        ("--peers at:threat=l2", "no reference loop of 'at:threat=l2': expected st,"),
        ("--peers boosted:threat=max,boosted --collab mat-mp", "no reference loop of 'boosted:thr"),
        ("--methods at,trade", "did you mean 'trades'"),
        ("--arch resnet19", "unknown architecture"),
        ("--repetitions 0", "repetitions is 0"),
        ("--compare nowhere.json", "it is no file of `fastcat bench`"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_contestants_are_each_listed_once() -> None:
    assert contestants_for("plain,bf16/winograd,bf16/auto", CPU) == ["plain", "bf16/winograd"]
    assert contestants_for("auto", CPU)[:2] == ["plain", "mixed"]


def test_what_was_not_measured_is_a_dash() -> None:
    columns = (("name", "{name}"), ("MiB", "{mib:.0f}"))
    assert table([{"name": "a", "mib": None}, {"name": "b", "mib": 12.3}], columns).split() == [
        "name", "MiB", "a", "-", "b", "12",
    ]  # fmt: skip


def test_layers_of_a_network_are_counted_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = shapes_of("resnet18", 32)
    assert sum(shapes.values()) == 20
    assert shapes[64, 64, 3, 1, 1, 32] == 4
    assert shapes[256, 512, 1, 2, 0, 8] == 1
    tiny.register()

    def timed(function: Callable[..., object], *inputs: torch.Tensor, calls: int) -> float:
        assert calls
        function(*inputs)
        return 2.0

    monkeypatch.setattr("fastcat.benchmarks.layers.best_milliseconds", timed)
    rows = measure_layers("tiny", "fp32", 2, CPU)
    assert all(row["ms"] == 2.0 for row in rows)
    (first, *_) = rows
    assert first["tflops"] == pytest.approx(2 * 2 * 8 * 32 * 32 * 3 * 9 / 2e-3 / 1e12)
    convolutions = sum(row["count"] for row in rows if row["pass"] == "forward")
    assert step_floor(rows, 3, 0, 0) == 3 * convolutions * 2.0


@pytest.mark.slow
def test_the_roofline_is_drawn(small: dict[str, Any], tmp_path: Path) -> None:
    bench(
        BenchConfig(
            **small,
            contestants="plain,bf16/eager",
            what="train,layers",
            out=tmp_path / "bench.json",
        )
    )
    command = [
        sys.executable,
        "-m",
        "benchmarks.roofline",
        str(tmp_path / "bench.json"),
        "roof.svg",
    ]
    subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=True)
    picture = (tmp_path / "roof.svg").read_text()
    assert picture.count("<svg") == 1
    assert len(picture) > 10000


@pytest.mark.slow
def test_the_gpu_check_needs_torch_triton_and_numpy_alone() -> None:
    """It must run where nothing of a run's other packages is installed."""
    others = [
        "tyro",
        "rich",
        "yaml",
        "safetensors",
        "torchvision",
        "PIL",
        "sklearn",
        "hypothesis",
        "matplotlib",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({others}))\nimport benchmarks.gpu"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
