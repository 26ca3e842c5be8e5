"""`make gpu` without one: what becomes of parts that go wrong, and of its time; the page."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastcat.benchmarks.gpu import lead
from fastcat.benchmarks.gpu_page import page
from fastcat.benchmarks.gpu_parts import PARTS
from tests.harness import gpu_visit

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.process
def test_a_part_costs_only_itself(tmp_path: Path) -> None:
    """Catches results that a later part takes along, and a process that is not begun again."""
    out = tmp_path / "gpu.json"
    lead(gpu_visit.PARTS, [str(out)], out, time.monotonic() + 120, module="tests.harness.gpu_visit")
    parts = json.loads(out.read_text())["parts"]
    failed = {name: part["result"].get("failed") for name, part in parts.items()}
    assert failed["raises"] == "ValueError: not on cpu"
    assert failed["dies"].startswith("stopped after")
    assert failed["hangs"].startswith("stopped after")
    assert parts["works"]["result"].keys() == {
        "one after the other", "on two streams", "groups=2"
    }  # fmt: skip
    text = out.with_suffix(".md").read_text()
    assert "## works" in text
    assert "| groups" not in text
    assert "- groups=2: " in text


@pytest.mark.slow
@pytest.mark.process
def test_a_rehearsal_writes_what_it_found_and_names_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--batch-size", "2"]
    parts = ["--parts", "grouped|batch norms|epilogues", "--out", str(out), "--minutes"]
    done = subprocess.run([*command, *parts, "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["parts"]
    assert found.keys() == {"epilogues", "batch norms", "grouped convolution"}
    # whether an epilogue is right, or a time: a CPU has neither cuDNN nor apex, which takes float16
    results = [item for part in found.values() for item in part["result"].items()]
    assert {name for name, value in results if not value > 0} == {
        "by cudnn, torch.float32", "by cudnn, torch.bfloat16", "by cudnn, torch.float16",
        "by apex, torch.float16",
    }  # fmt: skip
    done = subprocess.run([*command, *parts, "0.001"], cwd=ROOT, capture_output=True, text=True)
    left_out = [part["result"] for part in json.loads(out.read_text())["parts"].values()]
    assert left_out == [{"left out": "no time"}] * 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--device", "cpu", "--parts", "nothing"], "no part matches 'nothing'"), ([], "no GPU")],
)
@pytest.mark.process
@pytest.mark.slow
def test_what_cannot_be_run_is_said(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "gpu.json").exists()


def test_parts_have_names_of_their_own_and_fit_their_visits() -> None:
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert {part.call for part in PARTS} == {1, 2}


def test_the_page_shows_races_rows_and_lists() -> None:
    row = {"peers": "at", "contestant": "plain", "batch_size": 8, "ms": 12.34567, "speedup": 1.0}
    record: dict[str, Any] = {
        "date": "2026-01-02",
        "environment": {"gpus": [{"name": "Some GPU"}], "packages": {"torch": "2.11"}},
        "parts": {
            "race": {"seconds": 3, "result": {"date": "2026-01-02", "results": [row]}},
            "profile": {"seconds": 1, "result": {"kernels": [{"us": 1.5, "name": "a|b"}]}},
            "tests": {"seconds": 2, "result": {"exit": 0, "ended": {"PASSED": 4}}},
            "late": {"seconds": 0, "result": {"left out": "no time"}},
        },
    }
    text = page(record)
    assert "Some GPU, torch 2.11, triton None, 2026-01-02." in text
    assert "| at | 8 | plain | 12.35 | 1 |" in text
    assert "| 1.5 | a\\|b |" in text
    assert "| PASSED | 4 |" in text
    assert "- left out: no time" in text
