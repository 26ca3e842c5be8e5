"""What is printed: names of every kind, terminals of every kind, and nobody who reads."""

import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fastcat.cli import main
from fastcat.output import Output, encodable, one_line
from fastcat.progress import has_bar, make_console, task
from fastcat.runs.checkpoint import read_checkpoint
from fastcat.runs.recorder import Recorder
from tests.harness import tiny
from tests.harness.runs import SMALL, tiny_command

# as in a container without a locale, before Python makes UTF-8 of it
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ONE_EPOCH = [*SMALL, "--epochs", "1", "--peers", "at"]


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


@contextmanager
def unread() -> Iterator[None]:
    """Standard output goes to somebody who has left, as under `| head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with redirect_stdout(stream):
        yield
    stream.detach().detach().close()


@contextmanager
def terminal(kind: str) -> Iterator[int]:
    """Standard output is a terminal; the descriptor that reads what it shows."""
    shown, inside = pty.openpty()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(inside, "w") as stream:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        patch.setenv("TERM", kind)
        with redirect_stdout(stream):
            yield shown
    os.close(shown)


def read_until(shown: int, wanted: bytes) -> bytes:
    """What a terminal shows up to `wanted`; as much as comes within ten seconds without it.

    One read returns what one write left there, and a bar writes several times.
    """
    seen = b""
    while wanted not in seen and select.select([shown], [], [], 10)[0]:
        seen += os.read(shown, 1 << 16)
    return seen


def folder(root: str, *classes: str) -> Path:
    """Six images a class and split."""
    for split in ("train", "test"):
        for k, name in enumerate(classes):
            (Path(root) / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = np.full((8, 8, 3), 20 * i + k, dtype=np.uint8)
                Image.fromarray(pixels).save(Path(root) / split / name / f"{i}.png")
    return Path(root)


@pytest.mark.slow
@pytest.mark.process
def test_names_that_the_system_cannot_write() -> None:
    """Catches each place that prints, logs or records in the locale's encoding, which ends a run.

    The folder's name is no text in any encoding that is asked for, classes none in ASCII.
    """
    classes = "frog \N{FROG FACE}", "[red]", "50%", "two\nlines"
    root = folder(os.fsdecode(b"caf\xe9"), *classes)
    done = subprocess.run(
        [*tiny_command("train", *ONE_EPOCH, "--data", f"./{root}", "--batch-size", "4",
                       "--train-size", "12", "--val-size", "4", "--out", "run")],
        capture_output=True, text=True, env={**os.environ, **ASCII}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "images of caf\\udce9, judged" in done.stdout
    assert read_checkpoint(Path("run/checkpoints/last.pt"))["epoch"] == 1
    for record in ("log.txt", "report.html", "config.yaml"):
        assert "caf\\udce9" in Path("run", record).read_text("utf-8").replace("uDCE9", "udce9")
    # and in a run, and in evaluations, that another locale reads
    assert yaml.safe_load(Path("run/config.yaml").read_text("utf-8"))["data"].endswith("/caf\udce9")
    assert main(["eval", "run", "--attacks", "clean"]) == 0
    info = json.loads(Path("run/eval/test.json").read_text())["peers"]["0-at"]["info"]
    assert [os.fsencode(name).decode() for name in info["classes"]] == sorted(classes)


def test_other_commands_on_a_terminal_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder("café", "cat", "frog \N{FROG FACE}")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    assert main(["data", "info", str(root)]) == 0
    assert main(["data", "convert", str(root), "é.packed"]) == 0
    assert main(["data", "verify", "é.packed"]) == 0
    assert main(["list"]) == 0
    assert rb"frog \U0001f438" in raw.getvalue()
    assert rb"next: fastcat train --data '\xe9.packed'" in raw.getvalue()


def test_a_line_stays_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a class that is called so that it clears the screen, or forges a line of the log."""
    assert one_line("two\nlines\x1b[2J") == r"two\nlines\x1b[2J"
    assert one_line("[red] 50% {x} \N{FROG FACE}") == "[red] 50% {x} \N{FROG FACE}"
    assert encodable("\udce9 é", "latin-1") == r"\udce9 é"
    Recorder(Path(), 1, make_console()).line("answers are 'two\nlines'")
    assert Path("log.txt").read_text() == "answers are 'two\\nlines'\n" == capsys.readouterr().out
    assert main(["eval", "no\nrun"]) == 2
    assert capsys.readouterr().err.startswith(r"fastcat: no\nrun holds no weights")


@pytest.mark.slow
def test_nobody_reads(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a run, or an epoch of one, that is lost because its lines cannot be printed."""
    with unread():
        assert main(["train", *ONE_EPOCH, "--out", "run"]) == 0
    assert read_checkpoint(Path("run/checkpoints/last.pt"))["epoch"] == 1
    assert Path("run/log.txt").read_text().count("\n") >= 3
    with unread():
        assert main(["eval", "run", "--attacks", "clean", "--n", "10"]) == 0
    assert Path("run/eval/test.json").stat().st_size > 0
    assert capsys.readouterr() == ("", "")


def command(typed: list[str], **streams: object) -> tuple[int, str]:
    """Exit status and what is said on standard error."""
    done = subprocess.run(typed, text=True, timeout=300, stderr=subprocess.PIPE, **streams)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.process
def test_standard_output_that_cannot_be_had() -> None:
    """Catches Python's own complaint at its end, and results that are lost without a word."""
    asking = [sys.executable, "-m", "fastcat", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    assert command(asking, stdout=writer) == (0, "")
    os.close(writer)
    with open("/dev/full", "w") as full:
        status, error = command(asking, stdout=full)
    assert status == 2
    assert error == "fastcat: cannot write to the standard output: No space left on device\n"
    status, _ = command(asking, preexec_fn=lambda: os.closerange(0, 2))
    assert status == 0
    # without any of the three: none of their numbers may become a file of the run
    training = tiny_command("train", *ONE_EPOCH, "--out", "run")
    status, _ = command(training, preexec_fn=lambda: os.closerange(0, 3))
    assert status == 0
    assert read_checkpoint(Path("run/checkpoints/last.pt"))["epoch"] == 1


def test_an_output_that_fails_drops_the_rest() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        output = Output(stream)
        print("lost", file=output, flush=True)
    assert isinstance(output.error, ValueError)


def test_without_standard_error_nothing_is_said_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["trian"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("columns", ["20", "200"])
def test_a_bar_with_any_name(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches names that are read as markup: a closing tag that nothing opened ends the command."""
    monkeypatch.setenv("COLUMNS", columns)
    with terminal("xterm") as shown:
        console = make_console()
        assert has_bar(console)
        with task(console, "[/b] {x} %s\n") as progress:
            progress(1, 2)
        name = b"[/b] {x} %s"[: int(columns) // 4]
        assert name in read_until(shown, name)


def test_where_no_bar_can_stand_there_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal("dumb") as shown:
        with task(make_console(), "packing [red]") as progress:
            progress(1, 2)
        assert read_until(shown, b"\n") == b"packing [red]\r\n"
    # colours may be wanted in a file, a bar that overwrites itself never is
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (
        redirect_stdout(io.StringIO()) as file,
        task(make_console(), "packing [red]") as progress,
    ):
        progress(1, 2)
    assert file.getvalue() == "packing [red]\n"
