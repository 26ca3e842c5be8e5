"""SGD over all parameters of a network at once, with a moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcat.kernels.fused_sgd import fused_sgd

# elements; 256 bytes of float32
_ALIGNMENT = 64


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
    """SGD over all parameters of a model; equals torch.optim.SGD to rounding.

    The parameters become views of one flat buffer, which a single kernel updates. Learning rate,
    momentum, the average's decay and float16's loss scale are read on the device. A parameter
    without gradient is left alone, as torch.optim.SGD leaves it.

    model: the network whose parameters become views
    lr, momentum, weight_decay, nesterov: as torch.optim.SGD has them
    norm_decay: whether weight_decay holds for BatchNorm's parameters too, as in most papers
    ema: decay per step of a moving average of the weights. None: no average
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
        """Collect the parameters' gradients; call it between backward and `step`."""
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
        """Within it the moving average stands in the place of the weights, if there is one.

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
