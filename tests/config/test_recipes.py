"""Recipes: each is valid, sourced, listed, trains and resumes; what is typed overrides it."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from fastcat.cli import main
from fastcat.config.peers import parse_peers
from fastcat.config.recipes import RECIPES
from fastcat.runs.checkpoint import read_checkpoint
from tests.harness import tiny
from tests.harness.recipes import recipe_settings
from tests.harness.runs import SMALL, assert_same_end


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_names_its_source(name: str) -> None:
    recipe_settings(name)
    lines = RECIPES[name].read_text().splitlines()
    assert lines[0].startswith("# ")
    assert not [line for line in lines if "#" not in line]
    assert not [line for line in lines if len(line.partition("  # ")[0]) > 120]


def test_a_recipe_computes_as_its_source_or_says_how_that_did() -> None:
    """Catches a recipe of a float32 run that trains in bfloat16 where the GPU can."""
    unset = {name for name in RECIPES if recipe_settings(name).precision == "auto"}
    assert unset == {"fast-at", "free-at", "maini-avg", "maini-max", "maini-msd"}
    for name in unset:
        text = RECIPES[name].read_text()
        assert re.search(r"in\s+float16,? .*no loss scaling: --precision fp16 comes near", text)


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the user puts beside a recipe that names a teacher."""
    tiny.register()
    run = tmp_path_factory.mktemp("teacher") / "run"
    assert main(["train", *SMALL, "--peers", "at", "--epochs", "1", "--out", str(run)]) == 0
    return run / "peers" / "0-at.last.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if n % 3 == 0 else pytest.mark.represented)
        for n, name in enumerate(RECIPES)
    ],
)
def test_a_recipe_trains_and_resumes(
    name: str, teacher_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    shutil.copy(teacher_weights, "teacher.safetensors")
    digits = np.zeros((30, 8, 8, 1), np.uint8) + np.arange(30, dtype=np.uint8)[:, None, None, None]
    for extra in ("pseudo-labelled.npz", "generated.npz"):
        np.savez(extra, image=digits, label=np.arange(30) % 10)
    small = [*SMALL, "--epochs", "2", "--awp-warmup", "1", "--device", "cpu"]
    if recipe_settings(name).swa is not None:
        small += ["--swa", "1"]
    if recipe_settings(name).threats:
        # as many norms, in fewer steps
        small += ["--threats", "linf:eps=0.1,l2:eps=0.5,l1:eps=2"]
    assert main(["train", "--recipe", name, *small, "--out", "run"]) == 0
    config = yaml.safe_load(Path("run", "config.yaml").read_text())
    assert {peer.arch for peer in parse_peers(config["peers"], config["arch"])} == {"tiny"}
    shutil.copytree("run", "again")
    Path("again", "checkpoints", "last.pt").unlink()
    assert read_checkpoint(Path("again", "checkpoints", "previous.pt"))["epoch"] == 1
    assert main(["resume", "again"]) == 0
    assert_same_end(tmp_path / "run", tmp_path / "again")


def test_what_is_typed_and_a_later_file_override_a_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("epochs: 1\nweight_decay: 0.001\n")
    files = ["--recipe=mart-paper", "--config", "c.yaml"]
    assert main(["train", "--lr", "0.3", *files, *SMALL, "--out", "run"]) == 0
    config = yaml.safe_load(Path("run", "config.yaml").read_text())
    assert (config["lr"], config["epochs"], config["weight_decay"]) == (0.3, 1, 0.001)
    assert (config["peers"], config["milestones"]) == ("mart:beta=5", "74,89,99")


def test_recipes_are_listed_with_their_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "recipes"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines.keys() == RECIPES.keys()
    assert lines["cat-paper"].startswith("CAT, two ResNet-18 (TRADES and ALP)")
