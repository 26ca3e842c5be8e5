"""SGD and the learning-rate schedules of the papers, as functions of elapsed epochs.

A schedule maps t, epochs elapsed (fractional, set before every iteration), to a factor of the
peak learning rate. Papers that count epochs from 1 and "decay at 75" train 74 epochs at full
rate: that is milestone 74 here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn

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


def onecycle(epochs: int) -> Schedule:
    """Cosine rise from 1/25 to the peak at 2.5 %, cosine fall to 0 (Rebuffi et al. 2021)."""
    rise = 0.025 * epochs

    def factor(t: float) -> float:
        if t < rise:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * t / rise))
        return 0.5 * (1 + math.cos(math.pi * min((t - rise) / (epochs - rise), 1.0)))

    return factor


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    schedule.__name__: schedule
    for schedule in (multistep, cosine, cyclic, triangular, onecycle, constant)
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
    name: str,
    epochs: int,
    milestones: Sequence[float] = (),
    warmup_epochs: float = 0.0,
    decay: float = 0.1,
) -> Schedule:
    """The schedule called `name`, with a linear rise from 0 over the first `warmup_epochs`.

    Raises InputError for an unknown name, for milestones or a decay that the schedule has no use
    for, and for a decay that is none.
    """
    if name not in SCHEDULES:
        raise InputError(f"unknown schedule {name!r}: {nearest(name, SCHEDULES)}")
    if milestones and name != "multistep":
        raise InputError(f"milestones belong to --schedule multistep, not to {name}")
    if not 0 < decay < 1:
        raise InputError(f"lr-decay is {decay:g}, expected a factor in (0, 1), for example 0.1")
    if decay != 0.1 and name != "multistep":
        raise InputError(f"lr-decay belongs to --schedule multistep, not to {name}")
    steps = {"milestones": milestones, "decay": decay} if name == "multistep" else {}
    main = SCHEDULES[name](epochs, **steps)
    return lambda t: main(t) * (min(1.0, t / warmup_epochs) if warmup_epochs else 1.0)


class FlatSGD(torch.optim.Optimizer):
    """SGD over all parameters of a model, BatchNorm's and biases included, as the papers train.

    The parameters become views of one flat buffer, which a single kernel updates; the learning
    rate and float16's loss scale are read on the device. Equals torch.optim.SGD to rounding, also
    in leaving parameters alone that had no gradient. ema: decay per step of a moving average of
    the weights, None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        ema: float | None = None,
    ) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # convolutions want their weights aligned
        ends = [0, *accumulate(-(-p.numel() // _ALIGNMENT) * _ALIGNMENT for p in self.parameters)]
        self.places = list(pairwise(ends))
        first = self.parameters[0]
        self.flat = torch.zeros(ends[-1], dtype=first.dtype, device=first.device)
        for parameter, view in zip(self.parameters, self.views(self.flat), strict=True):
            parameter.data = view.copy_(parameter.data)
        self.flat.grad = torch.zeros_like(self.flat)
        self.grad_views = self.views(self.flat.grad)
        self.momentum_buffer = torch.zeros_like(self.flat)
        self.ema = None if ema is None else self.flat.clone()
        self.settings = (weight_decay, momentum, nesterov)
        self.ema_decay = ema or 0.0
        self.lr = torch.tensor(lr, dtype=first.dtype, device=first.device)
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
        for run in self._runs():
            fused_sgd(
                self.flat[run],
                self.flat.grad[run],  # type: ignore[index]
                self.momentum_buffer[run],
                self.lr,
                *self.settings,
                scale,
                found_inf,
                None if self.ema is None else self.ema[run],
                self.ema_decay,
                None,
            )

    def _runs(self) -> list[slice]:
        """Stretches of parameters with a gradient: weight decay is for those alone."""
        used = [parameter.grad is not None for parameter in self.parameters]
        runs = []
        for is_used, members in groupby(range(len(used)), key=used.__getitem__):
            if is_used:
                stretch = list(members)
                runs.append(slice(self.places[stretch[0]][0], self.places[stretch[-1]][1]))
        return runs

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The moving average of the weights, where one is kept, in their place.

        It begins at the first weights, and the weights w after each update move it by

            a <- ema a + (1 - ema) w,

        as in Gowal et al. 2020 (arXiv 2010.03593). Training does not read it.
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

    def tensors(self) -> dict[str, Tensor]:
        """What a step changes beside the weights, by name."""
        kept = {"momentum_buffer": self.momentum_buffer, "ema": self.ema}
        return {name: tensor for name, tensor in kept.items() if tensor is not None}

    def state_dict(self) -> dict[str, Any]:
        return self.tensors()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
