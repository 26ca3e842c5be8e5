"""The attack of Squeeze Training (ST, Li et al., ICLR 2023): two views sought together.

Beside the adversarial view there is a collaborative one, which the network finds easier than the
image. At each step, of {adv, clean, col} and for each image alone,

    upper = lowest p_y,   lower = highest p_y
    both ascend   0.5 [KL(p_lower || p_upper) + KL(p_upper || p_lower)],   first arguments constant
    adv <- upper + step * sign(gradient),   col <- lower + step * sign(gradient)

so that roles may swap, and either may start again from the image. Of equals adv is upper and col
is lower. The gradient in the upper logits is 0.5 (p_upper - p_lower), in the lower its negative.
The clean images never move, so a model forwards them once.

The public code departs from this in two ways, which are `official`. In a step in which no image of
the batch has the clean one as upper or lower, adv and col stay where they are, and each takes the
other's gradient where roles have swapped. And p_y is compared in float32, where sure images all
have 1: of equals the clean image is both, which puts adv and col back on it for good.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.modes import NormMode, attack_mode
from fastcat.attacks.pgd import PGD, Network, at_least_float32, logits, room_for, stack_images
from fastcat.attacks.threat import Start, ThreatModel, Threats
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Squeeze(TrainingAttack):
    """Two views sought together, "adv" and "col".

    start, bn: as in `PGD`
    official: as the public code has it, where that departs from the formula
    """

    views: ClassVar[tuple[str, ...]] = ("adv", "col")
    start: Start = "gaussian"
    bn: NormMode = "train"
    official: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a name that is not known, and for a start without gradient."""
        PGD(start=self.start, bn=self.bn)
        if self.start == "zero":
            raise InputError(
                "at the image itself there is nothing to tell upper and lower apart: "
                "start at gaussian or uniform noise"
            )

    def check(self, threats: Threats, peer: int) -> None:
        if threats.models[0].restarts > 1:
            raise InputError("st seeks its two views from one start: type --restarts 1")

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        network, threat = work.networks[task], task.threats.models[0]
        x, y, noise = work.batch.x, work.batch.y, work.start_of(task)
        both = squeeze(network, self, x, y, threat, noise, work.grad_scale)
        return dict(zip(task.views, both, strict=True))


def select(z: Tensor, y: Tensor, official: bool = False) -> tuple[Tensor, Tensor]:
    """Which of (adv, clean, col) has the lowest p_y and which the highest: two places [B].

    z: logits [3, B, C], in this order
    y: labels [B]
    official: compare p_y itself, as the public code does

    Otherwise its log-odds are compared, which tell sure images apart where p_y is 1 in float32. NaN
    counts as the lowest.
    """
    label = y.expand(3, -1)[..., None]
    if official:
        # of equals the clean image: (clean, col, adv)
        p = z.softmax(2).gather(2, label).squeeze(2).roll(-1, 0)
        p = p.masked_fill(p.isnan(), -1)
        return (p.argmin(0) + 1) % 3, (p.argmax(0) + 1) % 3
    others = z.scatter(2, label, -torch.inf).logsumexp(2)
    odds = z.gather(2, label).squeeze(2) - others
    odds = odds.masked_fill(odds.isnan(), -torch.inf)
    return odds.argmin(0), 2 - odds.flip(0).argmax(0)


def pick(of_three: Sequence[Tensor] | Tensor, place: Tensor) -> Tensor:
    """[B, ...], row by row from the one of three tensors at `place` [B]."""
    first, second, third = of_three
    place = place.view(-1, *[1] * (first.dim() - 1))
    return torch.where(place == 0, first, torch.where(place == 1, second, third))


def squeeze(
    network: Network,
    inner: Squeeze,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """Adversarial and collaborative views [2, B, C, H, W] of x.

    network: what is attacked
    inner: settings of the attack
    x, y: clean images and labels
    threat: its threat model
    noise: start noise of both views, [2, B, C, H, W]
    grad_scale: factor of the climbed loss
    """
    x = x.detach()
    model, dtype = network, x.dtype
    if isinstance(network, Frozen):
        model, dtype = network.model, network.dtype
    views = room_for(2, x)
    for view, noise_of_view in zip(views, noise, strict=True):
        view.copy_(threat.start(x, inner.start, noise_of_view))

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        leaf = images.to(dtype).detach().requires_grad_()
        with torch.enable_grad():
            return leaf, logits(network, leaf)

    with attack_mode(model, inner.bn):
        # a compiled twin's backward can run once only
        kept = None if isinstance(network, Frozen) else forward(x)
        for _ in range(threat.steps):
            clean, z_clean = kept or forward(x)
            (adv, z_adv), (col, z_col) = forward(views[0]), forward(views[1])
            outputs, leaves = (z_adv, z_clean, z_col), (adv, clean, col)
            z = at_least_float32(torch.stack([z_c.detach() for z_c in outputs]))
            upper, lower = select(z, y, inner.official)
            p = z.softmax(2)
            pull = 0.5 * grad_scale * (pick(p, upper) - pick(p, lower))
            grads = []
            for c, (z_c, leaf) in enumerate(zip(outputs, leaves, strict=True)):
                # 0 for whom neither role fell to this one
                sign = (upper == c).int() - (lower == c).int()
                # a GPU would have to be waited for
                if leaf is clean and not x.is_cuda and not sign.any():
                    grads.append(torch.zeros_like(leaf))
                    continue
                dz = (sign[:, None] * pull).to(z_c.dtype)
                retain = leaf is clean and kept is not None
                grads += torch.autograd.grad(z_c, leaf, dz, retain_graph=retain)
            points = (views[0], x, views[1])
            moved = [pick(points, role) for role in (upper, lower)]
            if inner.official:
                needed = ((upper == 1) | (lower == 1)).any()
                moved = [torch.where(needed, *both) for both in zip(moved, views, strict=True)]
            for view, point in zip(views, moved, strict=True):
                view.copy_(point)
            threat.ascend(views, x, stack_images([pick(grads, role) for role in (upper, lower)]))
    return views
