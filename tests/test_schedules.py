"""Rates and momentum: numbers written by hand, and torch's own schedulers."""

from collections.abc import Sequence

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

from fastcat.errors import InputError
from fastcat.schedules import (
    SCHEDULES,
    elapsed,
    make_momentum,
    make_schedule,
    parse_milestones,
    parse_points,
)
from fastcat.step.sgd import ramped_decay

SQRT_HALF = 0.7071067811865476


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        pytest.param(
            "multistep", 200,
            {0: 1, 99.99: 1, 100: 0.1, 149.99: 0.1, 150: 0.01, 199.99: 0.01, 200: 0.01},
            id="multistep-default-100-150-of-200",
        ),
        pytest.param(
            "multistep", 30, {14.99: 1, 15: 0.1, 22.49: 0.1, 22.5: 0.01},
            id="multistep-default-of-30",
        ),
        pytest.param("constant", 10, {0: 1, 5: 1, 9.99: 1, 10: 1}, id="constant"),
        pytest.param(
            "cosine", 40,
            {0: 1, 10: (1 + SQRT_HALF) / 2, 20: 0.5, 30: (1 - SQRT_HALF) / 2, 40: 0, 41: 0},
            id="cosine",
        ),
        pytest.param(
            "cyclic", 30, {0: 0, 3: 0.25, 6: 0.5, 12: 1, 16.5: 0.75, 21: 0.5, 30: 0, 31: 0},
            id="cyclic-peak-at-12-of-30",
        ),
        pytest.param(
            "triangular", 30, {0: 0, 7.5: 0.5, 15: 1, 22.5: 0.5, 30: 0}, id="triangular-peak-at-15"
        ),
        pytest.param(
            "onecycle", 400,
            # rise from 0.04 in 10 epochs; half way up 0.04 + 0.96 / 2; half way down after 205
            {0: 0.04, 5: 0.52, 10: 1, 205: 0.5, 107.5: (1 + SQRT_HALF) / 2, 400: 0, 401: 0},
            id="onecycle-peak-at-10-of-400",
        ),
        pytest.param("linear", 30, {0: 1, 12: 0.6, 30: 0, 31: 0}, id="linear-to-0"),
    ],
)  # fmt: skip
def test_schedules_at_listed_epochs(name: str, epochs: int, expected: dict[float, float]) -> None:
    schedule = make_schedule(name, epochs)
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_milestones_of_the_user() -> None:
    schedule = make_schedule("multistep", 120, (75, 90.5, 100))
    expected = {0: 1, 74.99: 1, 75: 0.1, 90.49: 0.1, 90.5: 0.01, 99.9: 0.01, 100: 0.001, 119: 0.001}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected, rel=1e-12)


def test_the_rate_falls_by_as_much_as_the_user_says() -> None:
    schedule = make_schedule("multistep", 10, (2, 4), decay=0.2)
    assert [schedule(t) for t in (1.9, 2, 4, 9)] == pytest.approx([1, 0.2, 0.04, 0.04])


def test_straight_lines_go_through_the_users_points() -> None:
    rate = make_schedule("linear", 50, points=((2, 0.5), (4, 1), (8, 0.2)))
    assert [rate(t) for t in (0, 2, 3, 4, 7, 8, 50)] == pytest.approx(
        [0.5, 0.5, 0.75, 1, 0.4, 0.2, 0.2]
    )


@pytest.mark.parametrize(
    ("lr_at", "expected"),
    [
        ("start", [0, 0.25, 0.75, 1, 1.25]),
        ("middle", [0.125, 0.375, 0.875, 1.125, 1.375]),
        ("end", [0.25, 0.5, 1, 1.25, 1.5]),
        ("epoch", [0, 0, 0, 1, 1]),
    ],
)
def test_a_step_has_the_rate_of_its_start_middle_end_or_epoch(
    lr_at: str, expected: list[float]
) -> None:
    assert [elapsed(step, 4, lr_at) for step in (0, 1, 3, 4, 5)] == expected


def torchs(
    scheduler_of: type[LRScheduler], steps: int, peak: float, **settings: float
) -> list[tuple[float, float]]:
    """Rate and momentum of each step as a torch scheduler sets them."""
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=peak, momentum=0.9)
    scheduler = scheduler_of(sgd, **settings)
    seen = []
    for _ in range(steps):
        seen.append((sgd.param_groups[0]["lr"], sgd.param_groups[0]["momentum"]))
        sgd.step()
        scheduler.step()
    return seen


@pytest.mark.slow
def test_triangular_is_torchs_cyclic_lr_and_moves_momentum_with_it() -> None:
    """As Wong et al. 2020 call it, with momentum between 0.8 and 0.9 by its defaults."""
    epochs, n, peak = 15, 7, 0.2
    half = epochs * n / 2
    expected = torchs(
        CyclicLR, epochs * n, peak, base_lr=0, max_lr=peak, step_size_up=half, step_size_down=half
    )
    rate = make_schedule("triangular", epochs)
    momentum = make_momentum("triangular", epochs, 0.9, 0.8)
    times = [elapsed(step, n, "start") for step in range(epochs * n)]
    assert [peak * rate(t) for t in times] == pytest.approx([lr for lr, _ in expected], abs=1e-12)
    assert [momentum(t) for t in times] == pytest.approx([m for _, m in expected], abs=1e-12)


@pytest.mark.parametrize("epochs", [400, 100, 30, 2], ids=str)
def test_onecycle_once_an_epoch_is_torchs_and_moves_momentum_with_it(epochs: int) -> None:
    """Catches a peak that comes an epoch late, and a last epoch at rate 0."""
    expected = torchs(OneCycleLR, epochs, 0.2, max_lr=0.2, pct_start=0.025, total_steps=epochs)
    rate = make_schedule("onecycle", epochs, per_epoch=True)
    momentum = make_momentum("onecycle", epochs, 0.95, 0.85, per_epoch=True)
    assert [0.2 * rate(e) for e in range(epochs)] == pytest.approx([r for r, _ in expected])
    assert [momentum(e) for e in range(epochs)] == pytest.approx([m for _, m in expected])


def test_momentum_moves_with_a_rate_that_rises_and_falls_alone() -> None:
    assert make_momentum("cyclic", 30, 0.9, 0.5)(12) == 0.5
    with pytest.raises(InputError, match="cyclic, triangular or onecycle, not to multistep"):
        make_momentum("multistep", 30, 0.9, 0.5)


def test_the_decay_of_the_average_is_ramped_after_a_share_of_copies() -> None:
    """Of Wang et al. 2023: 400 epochs of 98 steps, copies before update 980, 0.995 from 2770 on.

    Catches a ramp that begins at the first step, and one of steps counted from 0.
    """
    decays = [ramped_decay(0.995, update, 0.025 * 400 * 98) for update in range(1, 3001)]
    assert decays[:979] == [0.0] * 979
    assert decays[979:982] == [1 / 10, 2 / 11, 3 / 12]
    assert decays[979 + 1789] == 1790 / 1799 < 0.995
    assert set(decays[979 + 1790 :]) == {0.995}
    # without copies the ramp begins one update later than at 1 / 10
    assert ramped_decay(0.995, 1, 0) == 2 / 11


def test_warm_up_multiplies() -> None:
    """A straight rise over 4 epochs, on top of what the schedule says at the time."""
    constant = make_schedule("constant", 10, warmup_epochs=4.0)
    assert [constant(t) for t in (0, 1, 2, 3, 4, 5, 10)] == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    cosine = make_schedule("cosine", 40, warmup_epochs=20.0)
    assert cosine(10) == pytest.approx(0.5 * (1 + SQRT_HALF) / 2)
    assert cosine(20) == pytest.approx(0.5)
    assert cosine(30) == pytest.approx((1 - SQRT_HALF) / 2)
    multistep = make_schedule("multistep", 10, (1.0,), warmup_epochs=2.0)
    assert [multistep(t) for t in (0.5, 1.0, 2.0)] == pytest.approx([0.25, 0.05, 0.1])
    assert make_schedule("constant", 10)(0) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_stay_between_0_and_1(name: str) -> None:
    schedule = make_schedule(name, 17)
    factors = [schedule(17 * i / 1000) for i in range(1001)]
    assert min(factors) >= 0
    assert max(factors) <= 1
    assert max(factors) > 0.99, "the peak is the rate that the user asked for"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100,150", (100.0, 150.0)),
        ("74", (74.0,)),
        (" 0.5, 1e2 ,", (0.5, 100.0)),
        ("", ()),
    ],
    ids=["two", "one", "spaces-and-fractions", "none"],
)
def test_milestones_are_read(text: str, expected: tuple[float, ...]) -> None:
    assert parse_milestones(text) == expected


def test_points_are_read() -> None:
    assert parse_points(" 0:0.05, 19:1,4e1:.5 ,") == ((0, 0.05), (19, 1), (40, 0.5))
    assert parse_points("") == ()


@pytest.mark.parametrize(
    "text",
    ["3", "1:2:3", "0:1,2", "2:1,1:0", "1:0,1:1", "-1:1", "0:2", "0:-0.1", "0:nan", "nan:1",
     "inf:1", "a:1", "0;1"],
)  # fmt: skip
def test_points_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_points(text)
    assert repr(text) in str(caught.value)
    assert "like 0:0.05,19:1,49:0" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["150,100", "100,100", "0,5", "-3", "ten", "100;150", "100 150", "nan", "100,nan"],
)
def test_milestones_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_milestones(text)
    assert repr(text) in str(caught.value)
    assert "like 100,150" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "milestones", "text"),
    [
        pytest.param("cosin", (), "unknown schedule 'cosin': did you mean 'cosine'?", id="typo"),
        pytest.param(
            "zzz", (), "known are constant, cosine, cyclic, linear, multistep, onec",
            id="nothing-near",
        ),
        pytest.param(
            "cosine", (5.0,), "milestones belong to --schedule multistep, not to cosine",
            id="milestones-for-cosine",
        ),
    ],
)  # fmt: skip
def test_schedules_that_mean_nothing_are_refused(
    name: str, milestones: Sequence[float], text: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_schedule(name, 10, milestones)
    assert text in str(caught.value)
