"""How the fastest way to run a step is found, kept, and followed."""

import json
from pathlib import Path

import pytest
import torch

from fastcat.step.algorithm import collaborative_step, start_noise
from fastcat.step.plan import CHOICES, Measured, Plan, follow, key_of, recall, remember, search
from tests.harness.networks import images, tiny_net
from tests.harness.teams import team_of

EXAMPLE = images(0, 4)[0].to(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastcat" / "plans.json"


def test_the_fastest_of_each_choice_is_found() -> None:
    """Catches a search that forgets the best so far, or measures a plan twice."""
    asked: list[Plan] = []

    def milliseconds(plan: Plan) -> float:
        asked.append(plan)
        return 30 - 2 * plan.merged + (plan.epilogue == "kernel") + 3 * plan.side_by_side

    measured = search(milliseconds, Plan(), CHOICES)
    assert measured.plan == Plan(merged=True, epilogue="torch", side_by_side=False)
    assert len(asked) == len(set(asked)) == len(measured.steps)
    assert len(asked) == 1 + sum(len(values) - 1 for values in CHOICES.values())
    assert measured.ranked()[0] == (str(measured.plan), 28.0)


def test_a_way_that_fails_is_not_taken() -> None:
    def milliseconds(plan: Plan) -> float:
        if plan.merged:
            raise RuntimeError("out of memory\nand more")
        return 1.0

    measured = search(milliseconds, Plan(), CHOICES)
    assert not measured.plan.merged
    failed = [taken for taken in measured.steps.values() if isinstance(taken, str)]
    assert failed == ["out of memory"]
    assert measured.ranked()[-1][1] == "out of memory"


def test_equally_fast_ways_leave_the_plan_as_it_is() -> None:
    assert search(lambda plan: 1.0, Plan(), CHOICES).plan == Plan()


def test_plans_are_kept_side_by_side(cache: Path) -> None:
    first = Measured(Plan(merged=True), {"one": 1.5, "other": "no"})
    second = Measured(Plan(epilogue="cudnn"), {"one": 2.0})
    remember("a", first)
    remember("b", second)
    assert recall("a") == first
    assert recall("b") == second
    assert recall("c") is None
    assert json.loads(cache.read_text()).keys() == {"a", "b"}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": 1}', '{"a": {"plan": {"warp": 9}, "steps": {}}}', '{"a": {}}']
)
def test_what_cannot_be_read_is_measured_again(text: str, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert recall("a") is None
    remember("a", Measured(Plan(), {"one": 1.0}))
    assert recall("a") == Measured(Plan(), {"one": 1.0})


def test_where_nothing_can_be_kept_nothing_fails(cache: Path) -> None:
    cache.parent.write_text("a file where the folder would be")
    remember("a", Measured(Plan(), {"one": 1.0}))
    assert recall("a") is None


def test_where_nothing_ran_nothing_is_kept() -> None:
    """Catches an error of one run, as too little memory, that all later ones would inherit."""
    remember("a", Measured(Plan(), {"one": "out of memory"}))
    assert recall("a") is None


def test_other_teams_and_batches_have_plans_of_their_own() -> None:
    keys = {
        key_of(team_of(methods), size, EXAMPLE)
        for methods in (["trades", "alp"], ["trades", "at"], ["trades"])
        for size in (64, 128)
    }
    assert len(keys) == 6


@pytest.mark.parametrize("plan", [Plan(), Plan(merged=True), Plan(epilogue="torch")], ids=str)
def test_a_plan_changes_no_result(plan: Plan) -> None:
    """Catches a plan that is followed by half of the peers, or not left again."""
    from fastcat.batch import Batch

    x, y = images(1, 6)
    x = x.to(memory_format=torch.channels_last)
    ends = []
    for plans in ([], [Plan(merged=True), plan]):
        team = team_of(["trades", "alp"])
        for one in plans:
            assert follow(one, team, EXAMPLE) == []
        noise = start_noise(team, x, torch.Generator().manual_seed(0))
        values = collaborative_step(team, Batch(x, y, torch.arange(6)), noise)
        ends.append(values.clone())
        for peer in team.peers:
            assert (peer.merged is not None) == (plan.merged and bool(plans))
            assert peer.frozen is not None
            assert peer.frozen.epilogue == (plan.epilogue if plans else "torch")
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_what_a_peer_cannot_follow_is_said() -> None:
    team = team_of(["trades"])
    team.peers[0].model.bn1.momentum = None
    (remark,) = follow(Plan(merged=True), team, EXAMPLE)
    assert "view by view" in remark


def test_trying_a_plan_draws_none_of_the_random_numbers_to_come() -> None:
    """Catches a run whose dropout differs by what was measured before it."""
    net = torch.nn.Sequential(tiny_net(0), torch.nn.Dropout(0.5))
    team = team_of(["trades"], [net])
    before = torch.get_rng_state()
    follow(Plan(merged=True), team, EXAMPLE)
    assert torch.equal(torch.get_rng_state(), before)
