"""SGD and the learning-rate schedules of the papers, as functions of elapsed epochs.

A schedule maps t, epochs elapsed (fractional, set before every iteration), to a factor of the
peak learning rate. Papers that count epochs from 1 and "decay at 75" train 74 epochs at full
rate: that is milestone 74 here.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from fastcat.errors import InputError, nearest

Schedule = Callable[[float], float]


def multistep(epochs: int, milestones: Sequence[float] = ()) -> Schedule:
    """A tenth of the rate after each milestone, by default 50 % and 75 % (Rice et al. 2020)."""
    drops = tuple(milestones) or (0.5 * epochs, 0.75 * epochs)
    return lambda t: 0.1 ** sum(t >= drop for drop in drops)


def constant(epochs: int) -> Schedule:
    """Full rate throughout."""
    return lambda t: 1.0


def cosine(epochs: int) -> Schedule:
    """Half a cosine from the peak to 0."""
    return lambda t: 0.5 * (1 + math.cos(math.pi * min(t / epochs, 1.0)))


def cyclic(epochs: int) -> Schedule:
    """0 to the peak at 40 % of training, then to 0, in straight lines (Wong et al. 2020)."""
    peak = 0.4 * epochs
    return lambda t: t / peak if t < peak else max(0.0, (epochs - t) / (epochs - peak))


def onecycle(epochs: int) -> Schedule:
    """Cosine rise from 1/25 to the peak at 2.5 %, cosine fall to 0 (Rebuffi et al. 2021)."""
    rise = 0.025 * epochs

    def factor(t: float) -> float:
        if t < rise:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * t / rise))
        return 0.5 * (1 + math.cos(math.pi * min((t - rise) / (epochs - rise), 1.0)))

    return factor


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__: schedule for schedule in (multistep, cosine, cyclic, onecycle, constant)
}


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
    name: str, epochs: int, milestones: Sequence[float] = (), warmup_epochs: float = 0.0
) -> Schedule:
    """The schedule called `name`, with a linear rise from 0 over the first `warmup_epochs`.

    Raises InputError for an unknown name and for milestones that the schedule has no use for.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}: {nearest(name, SCHEDULES)}")
    if milestones and name != "multistep":
        raise InputError(f"milestones belong to --schedule multistep, not to {name}")
    main = SCHEDULES[name](epochs, milestones) if milestones else SCHEDULES[name](epochs)
    return lambda t: main(t) * (min(1.0, t / warmup_epochs) if warmup_epochs else 1.0)


def make_optimizer(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> torch.optim.SGD:
    """SGD over all parameters, BatchNorm's and biases included, as the papers train."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
