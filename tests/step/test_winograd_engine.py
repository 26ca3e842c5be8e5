"""The engine winograd: every case of test_parity on wider peers, whose convolutions it takes."""

from collections.abc import Iterator

import pytest
import torch

from fastcat.attacks.pgd import attack
from fastcat.attacks.threat import ThreatModel
from fastcat.evaluation.evaluate import answers_after, parse_attacks
from fastcat.kernels.winograd import Winograd
from fastcat.runs.validation_answers import ValidationAnswers
from tests.harness.engines import engine_of, run
from tests.harness.networks import images, tiny_net
from tests.harness.parity import (
    assert_views_agree,
    check_float32_on_the_same_views,
    check_half_on_the_same_views,
    draw,
    float32_against_float64,
    half_against_float64,
    oracle_step,
)
from tests.harness.parity_cases import CASES, GIVEN_VIEWS, Case, represented
from tests.harness.teams import team_of

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 32


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """A mark for each convolution; true for one that takes gradients back."""
    marks: list[bool] = []
    real = Winograd.launch

    def watched(self: Winograd, *args: object, **kwargs: object) -> torch.Tensor:
        marks.append(bool(kwargs.get("gradient", False)))
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Winograd, "launch", watched)
    return marks


@pytest.mark.slow
@pytest.mark.parametrize("case", represented(GIVEN_VIEWS))
def test_three_steps_in_float32_on_the_same_views(case: Case, launches: list[bool]) -> None:
    """Against the float64 oracle, with the tolerance of other engines."""
    ours, nets = float32_against_float64(case, WIDTH)
    ours.team.weights_cached = Winograd
    check_float32_on_the_same_views(case, ours, nets)
    assert set(launches) == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("case", represented(CASES))
def test_views_made_in_float32(case: Case, launches: list[bool]) -> None:
    ours, nets = float32_against_float64(case, WIDTH)
    ours.team.weights_cached = Winograd
    x, y, noise = draw(case, 0, 11, 8)
    views, _ = ours.step(x, y, noise)
    assert_views_agree(case, views, oracle_step(case, nets, x.double(), y, noise, None))
    assert launches


@pytest.mark.slow
@pytest.mark.parametrize("case", represented(GIVEN_VIEWS))
def test_one_step_in_bfloat16_on_the_same_views(case: Case, launches: list[bool]) -> None:
    # torch's BatchNorm of bfloat16 rounds more in this layout, which is that of a run
    ours, nets = half_against_float64(case, "bf16", WIDTH, torch.channels_last)
    ours.team.weights_cached = Winograd
    check_half_on_the_same_views(case, ours, nets, 0.1)
    assert set(launches) == {False, True}


def wide_team(**settings: object):  # type: ignore[no-untyped-def]
    return team_of(
        ["trades", "alp"],
        [tiny_net(k, width=WIDTH) for k in range(2)],
        **settings,  # type: ignore[arg-type]
    )


def test_a_step_ends_with_the_weights_that_it_began_to_change() -> None:
    """Steps that differ from eager ones by rounding alone; catches weights of an earlier step."""
    teams = [wide_team(), wide_team()]
    engines = [
        engine_of(team, name)[0] for team, name in zip(teams, ("eager", "winograd"), strict=True)
    ]
    for step in range(4):
        plain, ours = (run(engine, step) for engine in engines)
        torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)


def test_the_attack_and_the_rest_of_a_step_run_so() -> None:
    engine, _ = engine_of(wide_team(), "winograd")
    trained: list[bool] = []

    def still(asked: bool) -> Winograd:
        trained.append(asked)
        return Winograd(asked)

    engine.team.weights_cached = still
    run(engine, 0)
    assert trained == [False, True, False]


def test_a_ragged_batch_is_no_news(launches: list[bool]) -> None:
    engine, said = engine_of(wide_team(), "winograd")
    run(engine, 0, size=4)
    assert launches
    run(engine, 1)
    assert not said


def test_peers_are_judged_so_and_found_as_robust(launches: list[bool]) -> None:
    engine, _ = engine_of(wide_team(), "winograd")
    x, y = images(0, 11)
    network, validated = ValidationAnswers(engine).of(0)
    (pgd,) = parse_attacks("pgd3")
    threat = ThreatModel(steps=3)
    noise = torch.rand(x.shape) * 2 - 1
    with torch.no_grad():
        fast = validated(network, x, y, pgd.attack, threat, noise)
        assert launches
        launches.clear()
        plain = answers_after(network, x, y, pgd.attack, threat, noise)
    assert not launches
    assert (fast == plain).float().mean() > 0.8


def test_elsewhere_nothing_changes(launches: list[bool]) -> None:
    """An attack of a user's own, after a step in the same process."""
    engine, _ = engine_of(wide_team(), "winograd")
    run(engine, 0)
    launches.clear()
    attack(tiny_net(0, width=WIDTH).eval(), *images(0, 11), ThreatModel(steps=1))
    assert not launches
