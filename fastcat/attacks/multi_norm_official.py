"""AVG, MAX and MSD as the public code of Maini et al. 2020 (arXiv 1909.04068) runs them.

    avg-official   an update of the weights for each threat model in turn, at the same learning rate
    max-official   the worst end of each image, as `max` has it
    msd-official   the worst of all iterates of each image, as `msd` has it

All climb the cross-entropy from the image itself; linf and l2 step as everywhere. In l1, with step
s and gradient g, a step

    moves    s / n sign(g) on each coordinate whose |g| is among the n largest, n drawn from 5 to 20
             for the whole batch; none that is at 0 or 1, or nearer than `gap` to the side that it
             would move to: s / n under msd, else s / 20
    projects sign(d) max(|d| - theta, 0) to l1 norm eps; as soon as one image of the batch is
             outside of the ball, those inside are moved out to its surface too, by theta < 0

and avg and max begin a second time in l1, at a random point of l1 norm 1; that end counts for the
images which it leaves misjudged.

Their attacks run in train mode and move BatchNorm's running statistics, in avg and max twice a
step, since each step also forwards for a prediction: bn=moving. Not followed: they compute in
float16, and divide by 0 in l2 where a gradient is 0, which here moves nothing; msd's view of an
image whose loss never rises above 0 is the image; P1, of l1 alone, is trained with n = 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcat.attacks.multi_norm import msd, worst
from fastcat.attacks.pgd import (
    PGD,
    ClimbedLoss,
    Network,
    Views,
    attacked,
    constant_logits,
    room_for,
)
from fastcat.attacks.threat import L1_SPARSITY, Start, ThreatModel, Threats
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.batch import Batch
from fastcat.errors import InputError
from fastcat.guard import answers

FEWEST = 5


def draw_counts(noise: Tensor, steps: int) -> Tensor:
    """How many coordinates of each image a step of l1 moves, for each of the steps: [steps].

    Whole numbers in the float type of noise.
    noise: uniform in [-1, 1]
    steps: how many are drawn
    """
    uniform = noise.flatten()
    uniform = uniform[torch.arange(steps, device=noise.device) % len(uniform)]
    choices = L1_SPARSITY - FEWEST + 1
    return (FEWEST + (choices * (uniform + 1) / 2).floor()).clamp(max=L1_SPARSITY)


def moved_l1(
    x_adv: Tensor, x: Tensor, grad: Tensor, model: ThreatModel, count: Tensor, gap: Tensor | float
) -> Tensor:
    """x_adv [B, C, H, W] after one step of l1 in the ball around x.

    count: coordinates that it moves, n, on the device
    gap: distance from 0 and 1 at which a coordinate does not move towards that side
    """
    grad = grad.to(x_adv.dtype).nan_to_num()
    at_edge = (x_adv <= 0) | (x_adv >= 1)
    near_edge = ((grad < 0) & (x_adv <= gap)) | ((grad > 0) & (x_adv >= 1 - gap))
    grad = grad.masked_fill(at_edge | near_edge, 0)
    size = grad.abs()
    largest = size.flatten(1).sort(descending=True).values
    last = largest.index_select(1, (count.long() - 1).clamp(max=largest.shape[1] - 1).view(1))
    chosen = size >= last[..., None, None]
    delta = x_adv + model.step / count * grad.sign() * chosen - x
    return (x + project_l1_official(delta, model.eps)).clamp(0, 1)


def project_l1_official(delta: Tensor, eps: float) -> Tensor:
    """delta [B, C, H, W] of l1 norm eps in every image, once one of them is longer than that."""
    size = delta.abs()
    largest = size.flatten(1).sort(descending=True).values
    counts = torch.arange(1, largest.shape[1] + 1, device=delta.device)
    theta = ((largest.cumsum(1) - eps) / counts).amax(1)[:, None, None, None]
    on_surface = delta.sign() * (size - theta).clamp(min=0)
    return torch.where((size.sum((1, 2, 3)) > eps).any(), on_surface, delta)


def msd_official(
    network: Network,
    inner: PGD,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """Adversarial views [B, C, H, W].

    models: the threat models
    noise: [1, B, C, H, W], of `OfficialMSD.starts`
    grad_scale: as in `ClimbedLoss`
    """
    counts = draw_counts(noise[0], max(model.steps for model in models))

    def step(t: int, model: ThreatModel, x_adv: Tensor, x: Tensor, grad: Tensor) -> None:
        if model.norm == "l1":
            gap = model.step / counts[t]
            x_adv.copy_(moved_l1(x_adv[0], x, grad[0], model, counts[t], gap))
        else:
            model.ascend(x_adv, x, grad)

    return msd(network, inner, batch, models, noise[0], grad_scale, step=step)


def ends_official(
    network: Network,
    inner: PGD,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """The ends [M, B, C, H, W] of the attacks under M threat models, for avg and max.

    noise: [2, B, C, H, W], of `Official.starts`
    grad_scale: as in `ClimbedLoss`
    """
    x = batch.x.detach()
    views = Views([network], x)
    with attacked([network], [inner]):
        climbed = ClimbedLoss(
            [network], [inner], x, batch.y, grad_scale, batch.y_mixed, batch.share
        )

        def gradient() -> Tensor:
            if inner.bn == "moving":
                # of a prediction that only their test reads
                constant_logits(network, views.seen_by(0))
            return views.gradients(climbed.logit_grad)

        def climb_l1(start: Tensor, model: ThreatModel, counts: Tensor) -> None:
            views.begin([start])
            for count in counts:
                gap = model.step / L1_SPARSITY
                views.begin([moved_l1(views.x_adv[0], x, gradient()[0], model, count, gap)])

        ends = room_for(len(models), x)
        for model, end in zip(models, ends, strict=True):
            if model.norm != "l1":
                views.begin([x])
                for _ in range(model.steps):
                    model.ascend(views.x_adv, x, gradient(), views.low)
                end.copy_(views.x_adv[0])
                continue
            first, second = draw_counts(noise[0], 2 * model.steps).chunk(2)
            climb_l1(x, model, first)
            end.copy_(views.x_adv[0])
            random = model.eps * noise[1]
            length = random.abs().sum((1, 2, 3), keepdim=True)
            climb_l1(x + random / length.clamp(min=model.eps), model, second)
            misjudged = answers(constant_logits(network, views.seen_by(0))) != batch.y
            end.copy_(torch.where(misjudged[:, None, None, None], views.x_adv[0], end))
    return ends


@dataclass(frozen=True, kw_only=True)
class Official(PGD):
    """The attack of `max-official`; its subclasses find other views."""

    def check(self, threats: Threats, peer: int) -> None:
        if self.loss != "ce":
            raise InputError(
                f"threat={threats.name} climbs cross-entropy, as its code does, and peer {peer} "
                f"does not: type threat={threats.way}, or a method like at"
            )
        if threats.models[0].restarts > 1:
            raise InputError(f"{threats.name} has the starts of its code: type --restarts 1")

    def starts(self, threats: Threats) -> list[tuple[ThreatModel, Start]]:
        """Noise in [-1, 1]: for the draws of n, and for a start in l1."""
        return [(ThreatModel(), "uniform")] * 2

    @classmethod
    def family(cls) -> type[TrainingAttack]:
        return TrainingAttack

    def ends(self, task: PeerAttack, work: Work, models: Sequence[ThreatModel]) -> Tensor:
        network, noise = work.networks[task], work.start_of(task)
        return ends_official(network, self, work.batch, models, noise, work.grad_scale)

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        ends = self.ends(task, work, task.threats.models)
        view, which = worst(work.networks[task], self, work.batch, ends)
        return {task.views[0]: view, f"which{task.peer}": which}


@dataclass(frozen=True, kw_only=True)
class OfficialAvg(Official):
    """The attack of `avg-official`: under the threat model whose turn it is."""

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        models = task.threats.models[work.turn : work.turn + 1]
        return {task.views[0]: self.ends(task, work, models)[0]}


@dataclass(frozen=True, kw_only=True)
class OfficialMSD(Official):
    """The attack of `msd-official`."""

    def starts(self, threats: Threats) -> list[tuple[ThreatModel, Start]]:
        """Noise in [-1, 1] for the draws of n."""
        return [(ThreatModel(), "uniform")]

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        network, noise = work.networks[task], work.start_of(task)
        models = task.threats.models
        view = msd_official(network, self, work.batch, models, noise, work.grad_scale)
        return {task.views[0]: view}
