"""A run that is stopped or killed and resumed ends with the bits of one that never was."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fastcat.runs.checkpoint import load_last_checkpoint, read_checkpoint
from tests.harness.runs import SMALL, assert_same_end, run_tiny, tiny_command

EPOCHS = 12
RUN = [*SMALL, "--peers", "trades,alp,natural", "--epochs", str(EPOCHS), "--ema", "0.9"]
RUN += ["--bn-groups", "2", "--awp", "0.01", "--awp-warmup", "2", "--save-every", "1"]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = run_tiny("train", *RUN, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        tiny_command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    while not (run / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.01)


def records(run: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.represented)])
def test_kills_change_no_bit(times: int, whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    chance = random.Random(0)
    process = start("train", *RUN, "--out", out)
    wait_for_checkpoint(out, process)
    kills = 0
    while kills < times:
        # a moment from the first checkpoint of this process on, wherever it then is
        time.sleep(chance.uniform(0.0, 0.3))
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        state, _ = load_last_checkpoint(out)
        assert 0 <= state["epoch"] <= EPOCHS
        before = (out / "log.txt").stat().st_size if (out / "log.txt").exists() else 0
        process = start("resume", out)
        # killing may begin as soon as the resumed process writes to its run
        while process.poll() is None and (out / "log.txt").stat().st_size <= before:
            time.sleep(0.01)
    assert process.wait() == 0
    assert_same_end(out, whole_run)
    assert [r["epoch"] for r in records(out, "metrics.jsonl")] == list(range(1, EPOCHS + 1))
    timed = {"seconds", "judging_seconds", "images_per_second", "peak_memory_mib"}
    for killed, undisturbed in zip(
        records(out, "metrics.jsonl"), records(whole_run, "metrics.jsonl"), strict=True
    ):
        assert {k: killed[k] for k in killed.keys() - timed} == {
            k: undisturbed[k] for k in undisturbed.keys() - timed
        }
    assert records(out, "steps.jsonl") == records(whole_run, "steps.jsonl")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    "signum",
    [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.represented)],
    ids=lambda signum: signum.name,
)
def test_a_signal_saves_and_says_how_to_go_on(
    signum: signal.Signals, whole_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    without_saves = [*RUN[: RUN.index("--save-every")]]
    process = start("train", *without_saves, "--out", out)
    wait_for_checkpoint(out, process)
    process.send_signal(signum)
    output, _ = process.communicate()
    assert process.returncode == 128 + signum
    assert f"fastcat resume {out}" in output
    state, _ = load_last_checkpoint(out)
    assert state["epoch"] < EPOCHS
    done = run_tiny("resume", out)
    assert done.returncode == 0, done.stderr
    assert_same_end(out, whole_run)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_falls_back_on_the_previous_one(
    whole_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    last = out / "checkpoints" / "last.pt"
    weights = read_checkpoint(last)["peers"][0]["model"]["linear.weight"]
    damaged = bytearray(last.read_bytes())
    damaged[damaged.index(weights.numpy().tobytes()[:64])] ^= 1
    last.write_bytes(bytes(damaged))
    done = run_tiny("resume", out)
    assert done.returncode == 0, done.stderr
    assert "going on from previous.pt" in done.stdout
    assert_same_end(out, whole_run)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(whole_run: Path) -> None:
    before = {p: p.read_bytes() for p in whole_run.rglob("*.safetensors")}
    checkpoint = (whole_run / "checkpoints" / "last.pt").stat().st_mtime_ns
    done = run_tiny("resume", whole_run)
    assert done.returncode == 0
    assert "is finished" in done.stdout
    assert before == {p: p.read_bytes() for p in whole_run.rglob("*.safetensors")}
    assert checkpoint == (whole_run / "checkpoints" / "last.pt").stat().st_mtime_ns


@pytest.mark.slow
@pytest.mark.process
def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("train", *SMALL, "--epochs", "500", "--out", out)
    try:
        wait_for_checkpoint(out, process)
        second = run_tiny("resume", out)
        assert second.returncode == 2
        assert "in use by another process" in second.stderr
    finally:
        process.kill()
        process.wait()


def test_a_run_moves_with_its_folder_and_resumes_from_elsewhere(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole_run, tmp_path / "moved")
    (tmp_path / "moved" / "checkpoints" / "last.pt").unlink()
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in whole_run.rglob("*")}
    done = run_tiny("resume", "moved")
    assert done.returncode == 0, done.stderr
    assert before == {p: p.stat().st_mtime_ns for p in whole_run.rglob("*")}
    assert_same_end(tmp_path / "moved", whole_run)
