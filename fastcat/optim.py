"""SGD and the learning-rate schedules of the papers, as functions of elapsed epochs.

A schedule maps t, epochs elapsed (fractional, set before every iteration), to a factor of the
peak learning rate. Papers that count epochs from 1 and "decay at 75" train 74 epochs at full
rate: that is milestone 74 here. Which t belongs to a step is another thing in which their code
differs: see `elapsed`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcat.errors import InputError, nearest
from fastcat.kernels.fused_sgd import fused_sgd

Schedule = Callable[[float], float]

# elements; 256 bytes of float32
_ALIGNMENT = 64


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

    per_epoch: as torch's OneCycleLR, stepped once an epoch, has it. The peak is then an epoch
    earlier, and the last epoch has 1/250000.
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
    """The schedule called `name`, with a linear rise from 0 over the first `warmup_epochs`.

    milestones, decay: of `multistep`. points: of `linear`. per_epoch: it is asked once an epoch.
    Raises InputError for an unknown name, for settings that the schedule has no use for, and for
    a decay that is none.
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
    """Momentum that moves against the rate of the schedule called `name`, as torch's schedulers do.

    It falls from `momentum` to `peak_momentum` while the rate rises to its peak, and returns
    (Smith 2018, arXiv 1803.09820). Raises InputError for a schedule that does not rise and fall.
    """
    heights = {"cyclic": cyclic, "triangular": triangular}
    if name not in (*heights, "onecycle"):
        raise InputError(
            f"peak-momentum belongs to --schedule cyclic, triangular or onecycle, not to {name}: "
            "type --peak-momentum None"
        )
    height = heights[name](epochs) if name in heights else _onecycle_height(epochs, per_epoch)
    return lambda t: momentum - (momentum - peak_momentum) * height(t)


def ramped_decay(decay: float, updates: int, copied: float) -> float:
    """Decay of the average of weights at update number `updates`, counted from 1.

    0, which copies the weights, before update number `copied`, then min(decay, (1 + d) / (10 + d))
    with d updates since: the port of Gowal et al. 2020 by Rade (2021) and Wang et al. 2023.
    """
    since = updates - copied
    return min(decay, (1 + since) / (10 + since)) if since >= 0 else 0.0


def _norm_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            yield from module.parameters()


class FlatSGD(torch.optim.Optimizer):
    """SGD over all parameters of a model.

    The parameters become views of one flat buffer, which a single kernel updates; the learning
    rate, momentum, the average's decay and float16's loss scale are read on the device. Equals
    torch.optim.SGD to rounding, also in leaving parameters alone that had no gradient.
    weight_decay: of BatchNorm's parameters too, as most papers train, unless norm_decay is False;
    ema: decay per step of a moving average of the weights, None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        norm_decay: bool = True,
        ema: float | None = None,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        spared = set() if norm_decay else {id(p) for p in _norm_parameters(model)}
        self.decays = [0.0 if id(p) in spared else weight_decay for p in self.parameters]
        # as they lie in the buffer: what decays alike side by side, for the fewest kernels
        self.order = sorted(range(len(self.decays)), key=lambda i: id(self.parameters[i]) in spared)
        # convolutions want their weights aligned
        sizes = (-(-self.parameters[i].numel() // _ALIGNMENT) * _ALIGNMENT for i in self.order)
        ends = [0, *accumulate(sizes)]
        place_of = dict(zip(self.order, pairwise(ends), strict=True))
        self.places = [place_of[i] for i in range(len(self.order))]
        first = self.parameters[0]
        self.flat = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
        for parameter, view in zip(self.parameters, self.views(self.flat), strict=True):
            parameter.data = view.copy_(parameter.data)
        self.flat.grad = torch.zeros_like(self.flat)
        self.grad_views = self.views(self.flat.grad)
        self.momentum_buffer = torch.zeros_like(self.flat)
        self.ema = None if ema is None else self.flat.clone()
        self.weight_decay, self.nesterov = weight_decay, nesterov
        self.lr, self.momentum, self.ema_shares = (
            torch.tensor(numbers, dtype=first.dtype, device=first.device)
            for numbers in (lr, momentum, (0.0, 1.0))
        )
        self.set_ema_decay(ema or 0.0)
        super().__init__([self.flat], {"lr": self.lr})
        # torch's GradScaler then leaves unscaling and skipping to `step`, without asking the host
        self._step_supports_amp_scaling = True

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters' places in a buffer like `flat`, in their shapes and strides."""
        return [
            flat.as_strided(p.shape, torch.empty_like(p).stride(), begin)
            for p, (begin, _) in zip(self.parameters, self.places, strict=True)
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def gather(self) -> None:
        """Collect the parameters' gradients; belongs between backward and `step`."""
        views, grads, unused = [], [], []
        for view, parameter in zip(self.grad_views, self.parameters, strict=True):
            if parameter.grad is None:
                unused.append(view)
            else:
                views.append(view)
                grads.append(parameter.grad)
        torch._foreach_copy_(views, grads)
        if unused:
            torch._foreach_zero_(unused)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights from the gathered gradients."""
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for run, weight_decay in self._runs():
            fused_sgd(
                self.flat[run],
                self.flat.grad[run],  # type: ignore[index]
                self.momentum_buffer[run],
                self.lr,
                weight_decay,
                self.momentum,
                self.nesterov,
                scale,
                found_inf,
                None if self.ema is None else self.ema[run],
                self.ema_shares,
                None,
            )

    def _runs(self) -> list[tuple[slice, float]]:
        """Stretches of parameters with a gradient, with their weight decay: the rest stays."""
        kinds = [(self.parameters[i].grad is not None, self.decays[i]) for i in self.order]
        runs = []
        for (is_used, decay), members in groupby(range(len(kinds)), key=kinds.__getitem__):
            if is_used:
                stretch = [self.places[self.order[member]] for member in members]
                runs.append((slice(stretch[0][0], stretch[-1][1]), decay))
        return runs

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average of the weights, where one is kept, in their place.

        It begins at the first weights, and the weights w after each update move it by

            a <- ema a + (1 - ema) w,

        as in Gowal et al. 2020 (arXiv 2010.03593). Training does not read it, and BatchNorm's
        running statistics stay those of the weights.
        """
        if self.ema is None:
            yield
            return
        weights = self.flat.clone()
        self.flat.copy_(self.ema)
        try:
            yield
        finally:
            self.flat.copy_(weights)

    def set_lr(self, lr: float) -> None:
        self.lr.fill_(lr)

    def set_momentum(self, momentum: float) -> None:
        self.momentum.fill_(momentum)

    def set_ema_decay(self, decay: float) -> None:
        for share, value in zip(self.ema_shares, (decay, 1 - decay), strict=True):
            share.fill_(value)

    def tensors(self) -> dict[str, Tensor]:
        """What a step changes beside the weights, by name."""
        kept = {"momentum_buffer": self.momentum_buffer, "ema": self.ema}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def state_dict(self) -> dict[str, Any]:
        return self.tensors()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
