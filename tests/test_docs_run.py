"""What README and docs/ show is run: Python with a tiny network, commands by the real parser.

Commands of README and docs/extend.md are carried out, with settings that make them short; of the
others the settings are read and checked, up to where training, evaluation or timing would begin. A
Python block that begins with the path of a file is this file, which the commands of its page use.
"""

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FakeData

import fastcat
from fastcat.cli import main
from tests.harness import tiny
from tests.harness.image_folders import make_folder
from tests.harness.pages import PAGES, ROOT, commands, fences

SMALL: dict[str, Any] = {
    "arch": "tiny",
    "epochs": 1,
    "steps": 1,
    "val_steps": 1,
    "train_size": 40,
    "val_size": 20,
    "batch_size": 20,
    "threads": 1,
}
# what a command does once its settings are read
WORK = (
    "fastcat.runs.api.train",
    "fastcat.runs.api.resume",
    "fastcat.runs.evaluate.evaluate_run",
    "fastcat.benchmarks.throughput.bench",
    "fastcat.loaders.convert.convert",
)
README, EXTEND = ROOT / "README.md", ROOT / "docs" / "extend.md"
WITH_PYTHON = [page for page in PAGES if any(language == "python" for language, _ in fences(page))]
TYPED = [
    pytest.param(page, arguments, id=f"{page.stem}: {' '.join(arguments)}")
    for page in PAGES
    if page not in (README, EXTEND)
    for arguments in commands(page)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would be: with a run of the tiny network, photos, and these packed."""
    tiny.register()
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        out = Path("runs/mine")
        fastcat.train(fastcat.TrainConfig(**SMALL, data="digits", eps=0.1, out=out))
        make_folder(folder / "photos")
        assert main(["data", "convert", "photos", "pets.packed"]) == 0
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def small_config(**settings: Any) -> fastcat.TrainConfig:
    return fastcat.config.train.TrainConfig(**{**settings, **SMALL})


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_runs(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name, an argument or a result that the code does not have any more."""
    monkeypatch.setattr(fastcat, "TrainConfig", small_config, raising=False)
    images = FakeData(60, (3, 8, 8), num_classes=2)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", lambda *_, **__: images)
    x, y = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
    names = {
        "model": tiny.Tiny(10, 1),
        "x": x,
        "y": y,
        "loader": DataLoader(TensorDataset(x, y), batch_size=10),
    }
    for language, text in fences(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)


def shortened(arguments: list[str], **others: str) -> list[str]:
    """A command with settings after its own that make it short; others: in place of some."""
    if arguments[0] != "train":
        return arguments
    small = {**SMALL, "data": "digits", **others}
    if "--data" in arguments:
        del small["data"]
    return arguments + [text for name, value in small.items() for text in (f"--{name}", str(value))]


@pytest.mark.slow
def test_commands_run(here: Path) -> None:
    """Catches commands of the README that do not lead from one to the next."""
    for arguments in commands(README):
        assert main(shortened(arguments)) == 0, arguments


@pytest.mark.process
@pytest.mark.slow
def test_each_part_is_one_file(tmp_path: Path) -> None:
    """What docs/extend.md promises, in a copy of the checkout with its files and nothing else."""
    for folder in ("fastcat", "kernels", "loaders", "benchmarks"):
        unwanted = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=unwanted)
    for _, text in fences(EXTEND):
        if file := re.match(r"# ([\w/]+\.py)\n", text):
            (tmp_path / file[1]).write_text(text)
    typed = [shortened(arguments, arch="my_networks:small") for arguments in commands(EXTEND)]
    code = "from fastcat.cli import main\nfor typed in {}: assert main(typed) == 0, typed"
    command = [sys.executable, "-c", code.format(typed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class Begun(BaseException):
    """Thrown where the work would begin."""


@pytest.mark.parametrize(("page", "arguments"), TYPED)
def test_commands_are_understood(
    page: Path, arguments: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an option, a name or a value that the command does not take any more."""

    def begin(*_: Any, **__: Any) -> None:
        raise Begun

    for name in WORK:
        monkeypatch.setattr(name, begin)
    with suppress(Begun):
        assert main(arguments) == 0
