"""Learning rate and momentum over a run: functions of the epochs elapsed.

A schedule maps t, epochs elapsed (fractional, set before every iteration), to a factor of the
peak learning rate. Papers that count epochs from 1 and "decay at 75" train 74 epochs at full
rate: that is milestone 74 here. Which t belongs to a step is another thing in which their code
differs: see `elapsed`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastcat.errors import InputError, nearest

Schedule = Callable[[float], float]


def multistep(epochs: int, milestones: Sequence[float] = (), decay: float = 0.1) -> Schedule:
    """A tenth of the rate after each milestone, by default 50 % and 75 % (Rice et al. 2020)."""
    drops = tuple(milestones) or (0.5 * epochs, 0.75 * epochs)
    return lambda t: decay ** sum(t >= drop for drop in drops)


def constant(epochs: int) -> Schedule:
    """Full rate throughout."""
    return lambda t: 1.0


def cosine(epochs: int) -> Schedule:
    """Half a cosine from the peak to 0."""
    return lambda t: 0.5 * (1 + math.cos(math.pi * min(t / epochs, 1.0)))


def cyclic(epochs: int) -> Schedule:
    """0 to the peak at 40 % of training, then to 0, in straight lines (Rice et al. 2020)."""
    return _rise_and_fall(0.4 * epochs, epochs)


def triangular(epochs: int) -> Schedule:
    """0 to the peak in the middle of training, then to 0, in straight lines (Wong et al. 2020)."""
    return _rise_and_fall(0.5 * epochs, epochs)


def _rise_and_fall(peak: float, epochs: int) -> Schedule:
    return lambda t: t / peak if t < peak else max(0.0, (epochs - t) / (epochs - peak))


def onecycle(epochs: int, per_epoch: bool = False) -> Schedule:
    """Cosine rise from 1/25 to the peak at 2.5 %, cosine fall to 0 (Rebuffi et al. 2021).

    per_epoch: whether it is stepped once an epoch, as torch's OneCycleLR may be. The peak is then
        an epoch earlier, and the last epoch has 1/250000
    """
    height, rise = _onecycle_height(epochs, per_epoch), _onecycle_rise(epochs, per_epoch)

    def factor(t: float) -> float:
        low = 1 / 25 if t < rise else 1 / 250_000 if per_epoch else 0.0
        return low + (1 - low) * height(t)

    return factor


def _onecycle_rise(epochs: int, per_epoch: bool) -> float:
    return 0.025 * epochs - per_epoch


def _onecycle_height(epochs: int, per_epoch: bool) -> Schedule:
    """From 0 to 1 and back, in half cosines."""
    rise, end = _onecycle_rise(epochs, per_epoch), epochs - per_epoch

    def height(t: float) -> float:
        if t < rise:
            return 0.5 * (1 - math.cos(math.pi * t / rise))
        return 0.5 * (1 + math.cos(math.pi * min((t - rise) / (end - rise), 1.0)))

    return height


def linear(epochs: int, points: Sequence[tuple[float, float]] = ()) -> Schedule:
    """Straight lines between points (epochs, factor), by default from the peak to 0."""
    # imported here: names of schedules are read where numpy is not needed
    import numpy as np

    at, factors = zip(*(points or ((0, 1), (epochs, 0))), strict=True)
    return lambda t: float(np.interp(t, at, factors))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__: schedule
    for schedule in (multistep, cosine, cyclic, triangular, onecycle, linear, constant)
}

# t of a step, by the number of those before it and by the steps of an epoch
LR_AT: dict[str, Callable[[int, int], float]] = {
    "start": lambda step, steps: step / steps,
    "middle": lambda step, steps: (step + 0.5) / steps,
    "end": lambda step, steps: (step + 1) / steps,
    "epoch": lambda step, steps: step // steps,
}


def elapsed(step: int, epoch_steps: int, lr_at: str) -> float:
    """Epochs elapsed at the step that follows `step` others, as a schedule is asked for them.

    lr_at: the start, middle or end of the step, or "epoch" for the start of its epoch.
    """
    return LR_AT[lr_at](step, epoch_steps)


def parse_points(text: str) -> tuple[tuple[float, float], ...]:
    """ "0:0.05,19:1,49:0" -> ((0, 0.05), (19, 1), (49, 0)), epochs and factors of the peak rate.

    Raises InputError unless epochs ascend from 0 or more and factors are in [0, 1].
    """
    expected = "expected epochs that ascend and factors in [0, 1], like 0:0.05,19:1,49:0"
    try:
        points = [tuple(map(float, part.split(":"))) for part in text.split(",") if part.strip()]
        at, factors = zip(*points, strict=True) if points else ((), ())
    except ValueError as error:
        raise InputError(f"lr-points {text!r}: {expected}") from error
    ascend = list(at) == sorted(set(at)) and all(0 <= t < math.inf for t in at)
    if not ascend or not all(0 <= factor <= 1 for factor in factors):
        raise InputError(f"lr-points {text!r}: {expected}")
    return tuple(zip(at, factors, strict=True))


def parse_milestones(text: str) -> tuple[float, ...]:
    """ "100,150" -> (100.0, 150.0). Raises InputError unless they are positive and ascend."""
    try:
        milestones = tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"milestones {text!r}: expected epochs like 100,150") from error
    if not all(a < b for a, b in zip((0.0, *milestones), milestones, strict=False)):
        raise InputError(f"milestones {text!r}: expected ascending epochs like 100,150")
    return milestones


def make_schedule(
    name: str,
    epochs: int,
    milestones: Sequence[float] = (),
    warmup_epochs: float = 0.0,
    decay: float = 0.1,
    points: Sequence[tuple[float, float]] = (),
    per_epoch: bool = False,
) -> Schedule:
    """The schedule called `name`: a factor of the peak learning rate by epochs elapsed.

    epochs: of the run
    milestones, decay: of `multistep`
    warmup_epochs: epochs of linear rise from 0 at the beginning
    points: of `linear`
    per_epoch: whether the rate is read once an epoch

    Raises InputError for an unknown name, for settings that the schedule does not have, and for a
    decay outside (0, 1).
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}: {nearest(name, SCHEDULES)}")
    if milestones and name != "multistep":
        raise InputError(f"milestones belong to --schedule multistep, not to {name}")
    if points and name != "linear":
        raise InputError(f"lr-points belong to --schedule linear, not to {name}")
    if not 0 < decay < 1:
        raise InputError(f"lr-decay is {decay:g}, expected a factor in (0, 1), for example 0.1")
    if decay != 0.1 and name != "multistep":
        raise InputError(f"lr-decay belongs to --schedule multistep, not to {name}")
    settings: dict[str, dict[str, Any]] = {
        "multistep": {"milestones": milestones, "decay": decay},
        "linear": {"points": points},
        "onecycle": {"per_epoch": per_epoch},
    }
    main = SCHEDULES[name](epochs, **settings.get(name, {}))
    return lambda t: main(t) * (min(1.0, t / warmup_epochs) if warmup_epochs else 1.0)


def make_momentum(
    name: str, epochs: int, momentum: float, peak_momentum: float, per_epoch: bool = False
) -> Schedule:
    """Momentum that moves against the learning rate of a schedule, as in torch's schedulers.

    It falls from `momentum` to `peak_momentum` while the rate rises to its peak, and returns (Smith
    2018, arXiv 1803.09820). Raises InputError for a schedule that does not rise and fall.
    """
    heights = {"cyclic": cyclic, "triangular": triangular}
    if name not in (*heights, "onecycle"):
        raise InputError(
            f"peak-momentum belongs to --schedule cyclic, triangular or onecycle, not to {name}: "
            "type --peak-momentum None"
        )
    height = heights[name](epochs) if name in heights else _onecycle_height(epochs, per_epoch)
    return lambda t: momentum - (momentum - peak_momentum) * height(t)
