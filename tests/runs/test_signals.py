"""A signal at any moment: what is half done is removed or can be gone on with, nothing is empty."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcat.cli import main
from fastcat.stop import Interrupted, first_signal, interrupt, stop_request
from tests.harness import tiny
from tests.harness.runs import SMALL, tiny_command


@pytest.fixture(autouse=True)
def _no_nohup() -> Iterator[None]:
    """A closed terminal stops what is tested, also where the tests run under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, former)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny.register()
    out = tmp_path_factory.mktemp("signals") / "run"
    assert main(["train", *SMALL, "--peers", "at", "--epochs", "1", "--out", str(out)]) == 0
    return out


def stop_evaluation(run: Path, signum: int) -> tuple[int, str]:
    """Exit status and standard error of an evaluation that a signal finds at work."""
    process = subprocess.Popen(
        tiny_command("eval", run, "--attacks", "pgd100000"),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "eval" / "test.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signum)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.represented),
        pytest.param(signal.SIGINT, marks=pytest.mark.represented),
    ],
)
def test_a_stopped_evaluation_leaves_nothing(run: Path, signum: signal.Signals) -> None:
    """Catches the empty record that gives every later one another name."""
    assert stop_evaluation(run, signum) == (128 + signum, f"fastcat: stopped by {signum.name}\n")
    assert not list((run / "eval").iterdir())


@pytest.mark.slow
@pytest.mark.process
def test_the_name_that_a_killed_evaluation_held_is_free(run: Path) -> None:
    status, _ = stop_evaluation(run, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert (run / "eval" / "test.json").stat().st_size == 0
    assert main(["eval", str(run), "--attacks", "clean", "--n", "10"]) == 0
    assert [path.name for path in (run / "eval").iterdir()] == ["test.json"]
    assert json.loads((run / "eval" / "test.json").read_text())["peers"]


def test_the_first_signal_is_a_request_and_the_second_an_end() -> None:
    """Catches a second Ctrl-C that kills at once and leaves temporary files."""
    # which a shell that has put the tests in the background lets them ignore
    before = signal.getsignal(signal.SIGINT)
    with first_signal(interrupt):
        with stop_request() as request:
            assert request.signum is None
            send(signal.SIGTERM)
            assert request.signum == signal.SIGTERM
            with pytest.raises(Interrupted, match="SIGHUP"):
                send(signal.SIGHUP)
        # it has been used up
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_without_a_signal_all_is_as_before() -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with first_signal(interrupt), stop_request() as request:
        pass
    assert request.signum is None
    assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            send(signal.SIGHUP)
        assert request.signum is None
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.slow
def test_an_interrupted_run_of_seeds_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two runs nothing is there to be saved, and the first is not to be lost."""
    from fastcat.runs import api as runs

    tiny.register()
    train = runs.train

    def interrupted(config, *others, **options):  # type: ignore[no-untyped-def]
        if config.seed == 1:
            send(signal.SIGTERM)
        return train(config, *others, **options)

    monkeypatch.setattr(runs, "train", interrupted)
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "--peers", "at", "--epochs", "1", "--seeds", "0,1", "--out", "run"]
    # the command has the function by its own name
    assert main(["train", *words]) == 128 + signal.SIGTERM
    assert "go on with all seeds: fastcat resume run" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "run"]) == 0
