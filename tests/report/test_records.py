"""Records: what a run writes is what their fields say, and older and newer files are read."""

import copy
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import fastcat
from fastcat.cli import main
from fastcat.report.html import write_report
from fastcat.report.records import (
    AttackRecord,
    EpochRecord,
    EvaluationRecord,
    PeerEvaluation,
    PeerRecord,
    SeedsEvaluation,
)
from tests.harness import tiny

SETTINGS: dict[str, Any] = {
    "arch": "tiny", "data": "digits", "eps": 0.1, "epochs": 2, "steps": 1, "val_steps": 1,
    "train_size": 40, "val_size": 20, "batch_size": 20, "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two peers and runs of two seeds, all of them evaluated."""
    tiny.register()
    folder = tmp_path_factory.mktemp("records")
    fastcat.train(fastcat.TrainConfig(**SETTINGS, out=folder / "one"), quiet=True)
    several = fastcat.TrainConfig(**SETTINGS, peers="at", seeds="0,1", out=folder / "several")
    fastcat.train(several, quiet=True)
    for name in ("one", "several"):
        assert main(["eval", str(folder / name), "--attacks", "clean,pgd2", "--n", "20"]) == 0
    return folder


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


@pytest.mark.slow
def test_a_run_writes_the_fields_of_the_records(runs: Path) -> None:
    """Catches a field that is written under another name, or is documented nowhere."""
    for line in (runs / "one" / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        assert values.keys() == names(EpochRecord)
        for peer in values["peers"].values():
            assert peer.keys() == names(PeerRecord)
        assert EpochRecord.read(values).peers["0-trades"].train["loss"] > 0
    values = json.loads((runs / "one" / "eval" / "test.json").read_text())
    assert values.keys() == names(EvaluationRecord)
    for peer in values["peers"].values():
        assert peer.keys() == names(PeerEvaluation)
        assert all(attack.keys() == names(AttackRecord) for attack in peer["attacks"].values())
    values = json.loads((runs / "several" / "eval" / "test.json").read_text())
    assert values.keys() >= names(SeedsEvaluation)


@pytest.mark.slow
def test_older_and_newer_files_make_a_page(runs: Path, tmp_path: Path) -> None:
    epochs = [
        json.loads(line) for line in (runs / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    evaluation = json.loads((runs / "one" / "eval" / "test.json").read_text())
    older, newer = copy.deepcopy(epochs), copy.deepcopy(epochs)
    for epoch in older:
        del epoch["rollbacks"]
        for peer in epoch["peers"].values():
            for name in ("unanswered", "commonest", "signs"):
                del peer[name]
    for epoch in newer:
        epoch["later"] = 1
        for peer in epoch["peers"].values():
            peer["later"] = 1
    old_evaluation = copy.deepcopy(evaluation)
    for peer in old_evaluation["peers"].values():
        del peer["without_gradient"]
        for attack in peer["attacks"].values():
            del attack["unanswered"]
    pages = []
    for name, lines, judged in (("older", older, old_evaluation), ("newer", newer, evaluation)):
        run = tmp_path / name / "one"
        (run / "eval").mkdir(parents=True)
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        (run / "eval" / "test.json").write_text(json.dumps(judged))
        write_report(run)
        pages.append((run / "report.html").read_text())
    without_watch = [re.sub(r"<h2>Watch</h2><ul>.*?</ul>\n?", "", page) for page in pages]
    assert without_watch[0] == without_watch[1]
    assert "0-trades" in pages[0]


@pytest.mark.parametrize(
    "text", ['{"epoch": 1}', '{"epoch": 1, "peers": {"0-at": {"train": {}}}}', '{"epo', "[]"]
)
def test_a_record_that_is_none_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text + "\n")
    with pytest.raises(fastcat.InputError, match=r"a record of .* cannot be read"):
        write_report(tmp_path)
