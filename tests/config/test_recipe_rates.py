"""The rate of every recipe at every step, against the loop of the code that it is from.

Each formula is written from the published loop as it counts: epochs from 0 or 1, steps within them,
where the rate is set. Files, lines and commits stand in the recipes.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest

from fastcat.config.recipes import RECIPES
from fastcat.schedules import elapsed
from tests.harness.recipes import recipe_settings

# of CIFAR's training set
IMAGES = 50_000

# the rate in epoch e, counted from 0, at its batch i of n
Rate = Callable[[int, int, int], float]


def from_1(lr: float, *drops: tuple[int, float]) -> Rate:
    """`for epoch in range(1, ...)`: `if epoch >= at: rate = lr * factor`, set once an epoch."""

    def rate(e: int, i: int, n: int) -> float:
        value = lr
        for at, factor in drops:
            if e + 1 >= at:
                value = lr * factor
        return value

    return rate


def within_epochs(schedule: Callable[[float], float], first_epoch: int = 0) -> Rate:
    """`lr_schedule(epoch + (i + 1) / len(loader))` before every step."""
    return lambda e, i, n: schedule(first_epoch + e + (i + 1) / n)


def halves_and_quarters(t: float) -> float:
    """Rice et al. and Wu et al., --lr-schedule piecewise of 200 epochs."""
    if t / 200 < 0.5:
        return 0.1
    return 0.1 / 10 if t / 200 < 0.75 else 0.1 / 100


def after_epochs(lr: float, factor: float, *milestones: int) -> Rate:
    """The rate is multiplied when an epoch, counted from 1, is over."""
    return lambda e, i, n: lr * factor ** sum(e + 1 > milestone for milestone in milestones)


def before_epochs(lr: float, factor: float, *milestones: int) -> Rate:
    """The rate is multiplied before an epoch, counted from 1, begins."""
    return lambda e, i, n: lr * factor ** sum(e + 1 >= milestone for milestone in milestones)


def multiplied_from_the_peak(e: int, i: int, n: int) -> float:
    """`if epoch in [100, 150]: rate = peak * 0.1`, epochs from 0: the second drop is none."""
    value = 0.1
    for epoch in range(e + 1):
        if epoch in (100, 150):
            value = 0.1 * 0.1
    return value


def cyclic_lr(lr: float, epochs: int, steps_a_batch: int = 1) -> Rate:
    """torch's CyclicLR from 0, half of all steps up and half down, stepped after every step."""

    def rate(e: int, i: int, n: int) -> float:
        half = epochs * n * steps_a_batch / 2
        cycle = math.floor(1 + (e * n * steps_a_batch + i) / (2 * half))
        x = abs((e * n * steps_a_batch + i) / half - 2 * cycle + 1)
        return lr * max(0.0, 1 - x)

    return rate


def one_cycle_by_epochs(e: int, i: int, n: int) -> float:
    """torch's OneCycleLR(max_lr=0.2, pct_start=0.025, total_steps=400), stepped once an epoch."""

    def annealed(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    first, last, peak = 0.2 / 25, 0.2 / 25 / 1e4, 0.2
    up, down = 0.025 * 400 - 1, 400 - 1
    return (
        annealed(first, peak, e / up) if e <= up else annealed(peak, last, (e - up) / (down - up))
    )


def cosine_by_epochs(e: int, i: int, n: int) -> float:
    """Carmon et al.: epochs counted from 1, set once an epoch."""
    return 0.1 * 0.5 * (1 + np.cos((e + 1 - 1) / 200 * np.pi))


def interpolated(t: float) -> float:
    """Maini et al., 50 epochs counted from 1: the last one is beyond the end, at rate 0."""
    return float(np.interp([t], [0, 50 * 2 // 5, 50 * 4 // 5, 50], [0, 0.1, 0.005, 0])[0])


MAINI = within_epochs(interpolated, first_epoch=1)
MART = from_1(0.01, (75, 0.1), (90, 0.01), (100, 0.001))
CAT = from_1(0.1, (100, 0.1), (150, 0.01))

PUBLISHED: dict[str, Rate] = {
    "act": before_epochs(0.1, 0.2, 60, 120, 160),
    "ard": multiplied_from_the_peak,
    "at-rice": within_epochs(halves_and_quarters),
    # torch's MultiStepLR, stepped after each epoch
    "at-swa": after_epochs(0.1, 0.1, 50, 150),
    "awp-at": within_epochs(halves_and_quarters),
    "awp-paper": CAT,
    "cat-official": CAT,
    "cat-paper": CAT,
    "dm-cifar10": one_cycle_by_epochs,
    "fast-at": cyclic_lr(0.2, 15),
    "fast-n-fgsm": cyclic_lr(0.2, 30),
    "free-at": cyclic_lr(0.04, 10, 8),
    "iad": multiplied_from_the_peak,
    "maini-avg": MAINI,
    "maini-max": MAINI,
    "maini-msd": MAINI,
    "mart-paper": MART,
    "mart-paper-wrn": from_1(0.1, (75, 0.1), (90, 0.01), (100, 0.001)),
    # no code; the numbers are MART's, counted as there
    "mat-cifar10": MART,
    "mat-cifar100": MART,
    "mat-mp-avg": MART,
    "mat-mp-max": MART,
    "mat-mp-msd": MART,
    "rslad": after_epochs(0.1, 0.1, 215, 260, 285),
    "st-cifar10": from_1(0.1, (80, 0.1), (100, 0.01)),
    "st-rst": cosine_by_epochs,
    "trades-bag-of-tricks": from_1(0.1, (100, 0.1), (105, 0.01)),
    "trades-paper": from_1(0.1, (75, 0.1), (90, 0.01), (100, 0.001)),
}


def test_every_recipe_has_its_formula() -> None:
    assert PUBLISHED.keys() == RECIPES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_step_of_a_recipe_has_the_published_rate(name: str) -> None:
    """Catches milestones copied as published, a drop that comes a step late, a rate half a step
    off, and one that moves within epochs where the published one does not.
    """
    config = recipe_settings(name)
    schedule, published = config.lr_schedule(), PUBLISHED[name]
    batches = math.ceil(IMAGES / config.batch_size)
    steps = batches * config.replays
    for epoch in range(config.epochs):
        for step in range(steps):
            ours = config.lr * schedule(elapsed(epoch * steps + step, steps, config.lr_at))
            # replays are steps of their own, in the published loop too
            theirs = published(epoch, step, batches)
            if abs(ours - theirs) > 1e-9 * config.lr:
                pytest.fail(f"epoch {epoch}, step {step}: {ours}, published {theirs}")


@pytest.mark.slow
def test_momentum_moves_where_the_published_scheduler_moves_it() -> None:
    """By its defaults torch's CyclicLR takes 0.9 to 0.8 while the rate rises, OneCycleLR 0.95 to
    0.85; no other script moves it.
    """
    ends = {"fast-at": (0.9, 0.8), "fast-n-fgsm": (0.9, 0.8), "free-at": (0.9, 0.8),
            "dm-cifar10": (0.95, 0.85)}  # fmt: skip
    for name in RECIPES:
        config = recipe_settings(name)
        momentum = config.momentum_schedule()
        if name not in ends:
            assert (config.momentum, momentum) == (0.9, None), name
            continue
        assert momentum is not None
        first, peak = ends[name]
        at_peak = 9 if name == "dm-cifar10" else config.epochs / 2
        assert [momentum(0), momentum(at_peak)] == pytest.approx([first, peak])
