"""The folder of a run that nobody has named: its own, whoever begins at the same time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fastcat.cli import main
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.runs.api import _claim
from tests.harness import tiny
from tests.harness.runs import SMALL

AT = TrainConfig(data="digits", peers="at")


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.register()
    monkeypatch.chdir(tmp_path)


def test_every_one_of_many_at_once_has_its_own() -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(_claim, [AT] * 16))
    assert len({*folders}) == 16
    assert {*folders} == {*Path("runs").iterdir()}
    assert {Path("runs/digits-at"), Path("runs/digits-at-16")} <= {*folders}


@pytest.mark.slow
def test_it_is_taken_after_all_that_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name that is chosen before the data are read, and gone when they are."""
    from fastcat.runs import api as runs

    class Slow(runs.Trainer):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            assert _claim(AT) == Path("runs/digits-at")

    monkeypatch.setattr(runs, "Trainer", Slow)
    words = [*SMALL, "--peers", "at", "--epochs", "1"]
    assert main(["train", *words]) == 0
    assert (Path("runs/digits-at-2") / "report.html").exists()
    assert "out: runs/digits-at-2\n" in Path("runs/digits-at-2/config.yaml").read_text()
    assert not list(Path("runs/digits-at").iterdir())


def test_names_are_of_the_data_and_the_methods() -> None:
    for data, peers, name in (
        ("./pets/", "trades:beta=3,at", "pets-trades-at"),
        (".", "at", f"{Path.cwd().name}-at"),
        ("/", "at", "data-at"),
        ("x" * 255, "at", "x" * 200),
        ("\N{FROG FACE}" * 60, "at", "\N{FROG FACE}" * 50),
    ):
        assert _claim(replace(AT, data=data, peers=peers)) == Path("runs", name)


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")])
def test_where_no_folder_can_be_made(make) -> None:  # type: ignore[no-untyped-def]
    """Catches a search for a free name that never ends."""
    make(Path("runs"))
    with pytest.raises(InputError, match="cannot write runs"):
        _claim(AT)
