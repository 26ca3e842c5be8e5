"""Learning rates at listed epochs against numbers written by hand."""

from collections.abc import Sequence

import pytest

from fastcat.errors import InputError
from fastcat.optim import SCHEDULES, make_schedule, parse_milestones

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
            "zzz", (), "known are constant, cosine, cyclic, multistep, onecycle, tri",
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
