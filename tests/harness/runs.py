"""Short runs on the bundled digits, and how to compare what they leave behind."""

import io
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from fastcat.cli import main
from fastcat.runs.checkpoint import read_checkpoint
from tests.harness import tiny

TINY = Path(__file__).with_name("tiny.py")

# 4 batches an epoch, the last of them ragged
SMALL = shlex.split(
    "--arch tiny --data digits --eps 0.1 --steps 2 --val-steps 2 --train-size 70 --val-size 20 "
    "--batch-size 20 --threads 1 --log-every 2"
)


def tiny_command(*arguments: str | Path) -> list[str]:
    """The same as a command for a process of its own."""
    return [sys.executable, str(TINY), *map(str, arguments)]


def run_tiny(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`fastcat ARGUMENTS` with the tiny network, in this process: its status and what it prints."""
    tiny.register()
    command, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(command)
    torch.set_num_threads(threads)
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def flat_tensors(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state by its path."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    children: dict[object, object] = {}
    if isinstance(state, dict):
        children = state
    elif isinstance(state, list):
        children = dict(enumerate(state))
    return {
        path: tensor
        for key, child in children.items()
        for path, tensor in flat_tensors(child, f"{prefix}/{key}").items()
    }


def assert_same_end(run: Path, other: Path) -> None:
    """Both runs end with the same bits: weights, BatchNorm, momentum, random state, best scores."""
    first, second = (read_checkpoint(r / "checkpoints" / "last.pt") for r in (run, other))
    tensors, others = flat_tensors(first), flat_tensors(second)
    assert tensors.keys() == others.keys()
    differing = [path for path in tensors if not torch.equal(tensors[path], others[path])]
    assert not differing
    assert first["best"] == second["best"]
    assert (first["epoch"], first["step"]) == (second["epoch"], second["step"])
    for file in sorted((run / "peers").iterdir()):
        assert file.read_bytes() == (other / "peers" / file.name).read_bytes(), file.name
