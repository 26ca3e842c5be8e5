"""Squeeze training, as the code of Li et al. (ST, ICLR 2023) runs it.

Of {x_adv, x, x_col}, for each image, upper has the lowest p_y and lower the highest;

  L = CE(z(x), y) + beta R,   R = 1/2 [KL(sg[p_lower] || p_upper) + KL(sg[p_upper] || p_lower)]

The attack ascends R in both, from two Gaussian starts: x_adv <- upper moved, x_col <- lower moved.
BatchNorm normalises by the batch and keeps its running statistics there, and in the last forward
of x_col.

What costs time: the clean images are forwarded once to begin with, and again, with a graph, in each
of the n steps in which any image needs their gradient, although they and the network stay as they
are; the host asks for that in each step; and every choice is made by masked copies, six a time.
With S steps 2S + 4 + n forwards, one backward fewer, and 3 backwards of weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .plain import PlainLoop, kl_batchmean

BETA = 6.0
VIEWS = ("adv", "clean", "col")


def masks(z: dict[str, Tensor], y: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each view, the images [B] whose upper it is, and those whose lower it is.

    Of equals the first is upper and the last lower.
    """
    log_p = {view: -F.cross_entropy(z[view].detach(), y, reduction="none") for view in VIEWS}
    adv, clean, col = (log_p[view] for view in VIEWS)
    upper = {"adv": (adv <= clean) & (adv <= col)}
    upper["clean"] = ~upper["adv"] & (clean <= col)
    upper["col"] = ~upper["adv"] & ~upper["clean"]
    lower = {"col": (col >= clean) & (col >= adv)}
    lower["clean"] = ~lower["col"] & (clean >= adv)
    lower["adv"] = ~lower["col"] & ~lower["clean"]
    return upper, lower


def picked(masks: dict[str, Tensor], of: dict[str, Tensor]) -> Tensor:
    """Each image's row of the view that its mask chooses."""
    result = torch.zeros_like(of["adv"])
    for view, mask in masks.items():
        if view in of:
            result[mask] = of[view][mask]
    return result


def squeeze_loss(upper: Tensor, lower: Tensor) -> Tensor:
    return 0.5 * (kl_batchmean(lower.detach(), upper) + kl_batchmean(upper.detach(), lower))


def st_loss(y: Tensor, clean: Tensor, adv: Tensor, col: Tensor) -> Tensor:
    z = {"adv": adv, "clean": clean, "col": col}
    upper, lower = masks(z, y)
    return F.cross_entropy(clean, y) + BETA * squeeze_loss(picked(upper, z), picked(lower, z))


class SqueezeLoop(PlainLoop):
    """As PlainLoop, for one peer of st. upper, lower: the masks of the latest attack step."""

    OBJECTIVES: ClassVar = {"st": (st_loss, ("clean", "adv", "col"))}

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        adv, col = (x + self.gaussian_start(0, x) for _ in range(2))
        with self.untracked():
            with torch.no_grad():
                z_clean = self.forward(0, x)
            for _ in range(self.steps):
                points = {"adv": adv.requires_grad_(), "clean": x, "col": col.requires_grad_()}
                loss = self.climbed(self.discrepancy, points, z_clean, y)
                moving = [view for view in VIEWS if points[view].requires_grad]
                found = torch.autograd.grad(loss, [points[view] for view in moving])
                grads = dict(zip(moving, found, strict=True))
                points = {view: point.detach() for view, point in points.items()}
                adv, col = (
                    self.ascend(picked(role, points), picked(role, grads), x)
                    for role in (self.upper, self.lower)
                )
        return {"clean": x, "adv0": adv, "col0": col}

    def discrepancy(self, points: dict[str, Tensor], z_clean: Tensor, y: Tensor) -> Tensor:
        """What both views ascend; the clean point gets a graph where any image needs it."""
        z = {"adv": self.forward(0, points["adv"]), "col": self.forward(0, points["col"])}
        z["clean"] = z_clean
        self.upper, self.lower = masks(z, y)
        if (self.upper["clean"] | self.lower["clean"]).sum() != 0:
            points["clean"] = points["clean"].detach().requires_grad_()
            z["clean"] = self.forward(0, points["clean"])
        return squeeze_loss(picked(self.upper, z), picked(self.lower, z))

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        clean, adv = (self.forward(0, views[view]) for view in ("clean", "adv0"))
        with self.untracked():
            col = self.forward(0, views["col0"])
        return [st_loss(y, clean, adv, col)], None

    @contextmanager
    def untracked(self) -> Iterator[None]:
        """BatchNorm normalises by the batch, and its running statistics stay."""
        norms = [m for m in self.models[0].modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.track_running_stats = False
        yield
        for norm in norms:
            norm.track_running_stats = True
