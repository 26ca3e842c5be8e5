"""Several seeds in one folder: every run as if alone, resumed, judged and summed up together."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import fastcat
from fastcat.cli import main
from fastcat.config.seeds import parse_seeds
from fastcat.report.seeds import spread_of
from tests.harness import tiny
from tests.harness.runs import SMALL, assert_same_end, run_tiny, tiny_command

SETTINGS = [*SMALL, "--epochs", "3", "--lr", "0.3"]
SEEDS = (3, 0, 11)
ATTACKS = ["--attacks", "clean,pgd2", "--n", "40"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of three seeds, and what was printed."""
    out = tmp_path_factory.mktemp("together") / "run"
    done = run_tiny("train", *SETTINGS, "--seeds", "3, 0,11", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_spread(spread: dict[str, Any], values: list[float]) -> None:
    """By the formula of the sample's standard deviation."""
    mean = sum(values) / len(values)
    std = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    assert spread["values"] == values
    assert spread["mean"] == pytest.approx(mean)
    assert spread["std"] == pytest.approx(std)
    assert (spread["min"], spread["max"]) == (min(values), max(values))


@pytest.mark.slow
def test_each_run_is_that_of_its_seed_alone(together: tuple[Path, str]) -> None:
    """Catches anything that one run leaves to the next: random state, switches, folders."""
    out, _ = together
    assert main(["train", *SETTINGS, "--seed", "11", "--out", "alone"]) == 0
    assert_same_end(out / "seed-11", Path("alone"))
    settings = yaml.safe_load((out / "seed-11" / "config.yaml").read_text())
    assert (settings["seed"], settings["seeds"]) == (11, None)
    assert yaml.safe_load((out / "config.yaml").read_text())["seeds"] == "3, 0,11"
    assert {path.name for path in out.iterdir()} == {
        *("config.yaml", "seeds.json", "report.html"),
        *(f"seed-{seed}" for seed in SEEDS),
    }


@pytest.mark.slow
def test_settings_of_one_and_of_all_repeat_them(together: tuple[Path, str]) -> None:
    out, _ = together
    short = ["--epochs", "1", "--out"]
    assert main(["train", "--config", str(out / "seed-3/config.yaml"), *short, "one"]) == 0
    assert main(["train", "--config", str(out / "config.yaml"), *short, "all"]) == 0
    assert_same_end(Path("one"), Path("all/seed-3"))
    assert Path("all/seed-11/report.html").exists()


@pytest.mark.slow
def test_the_summary_is_of_the_runs_own_records(together: tuple[Path, str]) -> None:
    out, printed = together
    record = json.loads((out / "seeds.json").read_text())
    assert record["judged_on"] == "val"
    runs = [
        [json.loads(line) for line in (out / f"seed-{seed}/metrics.jsonl").read_text().splitlines()]
        for seed in SEEDS
    ]
    for peer in ("0-trades", "1-alp"):
        for attack in ("clean", "pgd2"):
            last = [run[-1]["peers"][peer]["accuracy"][attack] for run in runs]
            check_spread(record["last"][peer][attack], last)
            starred = [[e["peers"][peer] for e in run if e["peers"][peer]["best"]] for run in runs]
            best = [entries[-1]["accuracy"][attack] for entries in starred]
            check_spread(record["best"][peer][attack], best)
            spread = record["best"][peer][attack]
            numbers = [f"{100 * spread[key]:.2f}" for key in ("mean", "std", "min", "max")]
            mean, std, low, high = numbers
            rows = [" ".join(line.split()) for line in printed.splitlines()]
            assert f"{peer} best {attack} {mean} {std} {low} .. {high}" in rows
    html = (out / "report.html").read_text()
    for seed in SEEDS:
        assert f'<a href="seed-{seed}/report.html">' in html
        assert (out / f"seed-{seed}" / "report.html").exists()
    assert "1-alp last pgd2" in html


@pytest.mark.slow
@pytest.mark.process
def test_a_stopped_folder_goes_on_where_it_stood(together: tuple[Path, str]) -> None:
    out, _ = together
    process = subprocess.Popen(
        tiny_command("train", *SETTINGS, "--seeds", "3, 0,11", "--out", "run"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    under_way = Path("run/seed-0/checkpoints/last.pt")
    while not under_way.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert output.endswith("go on with all seeds: fastcat resume run\n")
    assert not Path("run/seed-11").exists()
    assert main(["train", *SETTINGS, "--seeds", "1", "--out", "run"]) == 2
    finished = files(Path("run/seed-3"))
    Path("run").rename("moved")
    assert main(["resume", "moved"]) == 0
    assert not Path("run").exists()
    assert files(Path("moved/seed-3")) == {
        Path("moved") / path.relative_to("run"): kept for path, kept in finished.items()
    }
    for seed in SEEDS:
        assert_same_end(Path(f"moved/seed-{seed}"), out / f"seed-{seed}")
    records = (json.loads((run / "seeds.json").read_text()) for run in (Path("moved"), out))
    ours, expected = records
    assert (ours["best"], ours["last"]) == (expected["best"], expected["last"])
    # all done: nothing but the summary is touched
    before = files(Path("moved/seed-0"))
    assert main(["resume", "moved"]) == 0
    assert files(Path("moved/seed-0")) == before


@pytest.mark.slow
def test_every_seed_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    short = [*SMALL, "--epochs", "1", "--seeds", "0,1", "--out", "run"]
    assert main(["train", *short]) == 0
    capsys.readouterr()
    assert main(["eval", "run", *ATTACKS]) == 0
    printed = capsys.readouterr().out
    record = json.loads(Path("run/eval/test.json").read_text())
    assert (record["seeds"], record["n"], record["threats"][0]["eps"]) == ([0, 1], 40, "0.1")
    runs = [json.loads(Path(f"run/seed-{s}/eval/test.json").read_text()) for s in (0, 1)]
    for peer in ("0-trades", "1-alp"):
        assert list(record["spread"][peer]) == ["clean", "pgd2", "worst"]
        for attack, spread in record["spread"][peer].items():
            check_spread(spread, [r["peers"][peer]["attacks"][attack]["accuracy"] for r in runs])
            assert f"{peer} {attack}" in printed
    assert "test.json: percent of 40 test images" in Path("run/report.html").read_text()
    assert main(["eval", "run", *ATTACKS, "--peer", "1", "--out", "own.json"]) == 0
    assert list(json.loads(Path("own.json").read_text())["spread"]) == ["1-alp"]
    Path("run/seed-1").rename("elsewhere")
    capsys.readouterr()
    assert main(["eval", "run", *ATTACKS]) == 2
    assert "seed-1 holds no weights" in capsys.readouterr().err
    assert not Path("run/eval/test-2.json").exists()
    assert not Path("run/seed-0/eval/test-3.json").exists()
    Path("run/seeds.json").write_text("{")
    assert main(["resume", "run"]) == 2
    assert "seeds.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_the_api_gives_every_run_and_the_means() -> None:
    config = fastcat.TrainConfig(
        arch="tiny", peers="at", data="digits", train_size=20, val_size=10, batch_size=10, steps=1,
        val_steps=1, epochs=1, select_on="last", seeds="2,5", out=Path("run"),
    )  # fmt: skip
    result = fastcat.train(config)
    assert isinstance(result, fastcat.SeedsResult)
    assert list(result.runs) == [2, 5]
    assert result.runs[5].out == Path("run/seed-5")
    clean = [run.peers["0-at"]["accuracy"]["clean"] for run in result.runs.values()]
    assert result.last_spread["0-at"]["clean"].values == clean
    assert result.peers == {
        "0-at": {"accuracy": {a: s.mean for a, s in result.last_spread["0-at"].items()}}
    }
    assert result.best == result.best_spread == {}


def test_seeds_as_text() -> None:
    assert parse_seeds("7") == (7,)
    assert parse_seeds("2, 0,10") == (2, 0, 10)


def test_a_single_value_has_no_deviation() -> None:
    assert spread_of([0.5]).std is None
