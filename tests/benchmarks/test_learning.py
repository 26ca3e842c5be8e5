"""The comparison of what methods learn: it trains, and its page is what its record says."""

import json
from pathlib import Path

import pytest

from fastcat.benchmarks import learning
from fastcat.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_team_learns_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"epochs": 2, "steps": 1}
    monkeypatch.setitem(learning.SETTINGS, "Under l-infinity", {**learning.LINF, **short})
    monkeypatch.setitem(learning.TEAMS, "at", {**learning.TEAMS["at"], **short})
    out, page = tmp_path / "learnt.json", tmp_path / "learnt.md"
    half = {attack: {"mean": 0.5, "std": 0.0} for attack in ("clean", "pgd20", "worst")}
    earlier = {"settings": learning.TEAMS["trades"], "peers": {"0-trades": half}}
    record = {"config": {"seeds": "0,1"}, "teams": {"trades": earlier}}
    out.write_text(json.dumps(record))
    with pytest.raises(InputError, match="is of seeds 0,1: choose another --out"):
        learning.main(learning.LearningConfig(teams="at", seeds="0,2", out=out))
    threads = 1
    learning.main(
        learning.LearningConfig(teams="at", seeds="0,1", threads=threads, out=out, page=page)
    )
    record = json.loads(out.read_text())
    assert list(record["teams"]) == ["at", "trades"]
    assert record["teams"]["trades"] == earlier
    accuracy = record["teams"]["at"]["peers"]["0-at"]["clean"]
    assert len(accuracy["values"]) == 2
    assert accuracy["mean"] > 0.2, "ten classes"
    assert "0-at" in capsys.readouterr().out
    assert page.read_text() == learning.page(record)
    assert f"| at | 0-at | {100 * accuracy['mean']:.1f} ± " in page.read_text()


def test_the_page_is_what_the_record_says() -> None:
    record = json.loads((ROOT / "benchmarks/results/cpu-learning.json").read_text())
    assert record["teams"].keys() == learning.TEAMS.keys()
    assert {name: team["settings"] for name, team in record["teams"].items()} == learning.TEAMS
    assert (ROOT / "docs/learning.md").read_text() == learning.page(record)


@pytest.mark.parametrize("team", ["MAT-MP avg", "MAT-MP max", "MAT-MP msd"])
def test_the_generalist_is_the_best_where_norms_are_equally_hard(team: str) -> None:
    """What the page says in words; the numbers are the record's."""
    record = json.loads((ROOT / "benchmarks/results/cpu-learning.json").read_text())
    peers = record["teams"][f"{team}, balanced"]["peers"]
    worst = {peer: spreads["worst"]["mean"] for peer, spreads in peers.items()}
    assert max(worst, key=lambda peer: worst[peer]) == "0-boosted"
    hardness = [peers["0-boosted"][f"pgd20-{norm}"]["mean"] for norm in ("linf", "l2", "l1")]
    assert max(hardness) - min(hardness) < 0.05
