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

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.guard import answers
from fastcat.pgd import Goal, Inner, Network, Views, attacked, logits, room_for
from fastcat.threat import L1_SPARSITY, Start, ThreatModel, Threats
from fastcat.union import msd

FEWEST = 5


def starts_official(threats: Threats) -> list[tuple[ThreatModel, Start]]:
    """What noise it needs, in [-1, 1]: for the draws of n and, but for msd, for a start of l1."""
    return [(ThreatModel(), "uniform")] * (1 if threats.way == "msd" else 2)


def draw_counts(noise: Tensor, steps: int) -> Tensor:
    """How many coordinates [steps] of each image steps of l1 move; noise: uniform in [-1, 1].

    Whole numbers in the float type of noise.
    """
    uniform = noise.flatten()
    uniform = uniform[torch.arange(steps, device=noise.device) % len(uniform)]
    choices = L1_SPARSITY - FEWEST + 1
    return (FEWEST + (choices * (uniform + 1) / 2).floor()).clamp(max=L1_SPARSITY)


def moved_l1(
    x_adv: Tensor, x: Tensor, grad: Tensor, model: ThreatModel, count: Tensor, gap: Tensor | float
) -> Tensor:
    """x_adv [B, C, H, W] after one step of l1 in the ball around x; count: n, on the device."""
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
    inner: Inner,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """Adversarial views [B, C, H, W]; noise: [1, B, C, H, W], of `starts_official`.

    grad_scale: as in `Goal`.
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
    inner: Inner,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """Ends [M, B, C, H, W] of the attacks under M threat models, for avg and max.

    noise: [2, B, C, H, W], of `starts_official`. grad_scale: as in `Goal`.
    """
    x = batch.x.detach()
    views = Views([network], x)
    with attacked([network], [inner]):
        goal = Goal([network], [inner], x, batch.y, grad_scale, batch.y_mixed, batch.share)

        def gradient() -> Tensor:
            if inner.bn == "moving":
                # of a prediction that only their test reads
                logits(network, views.seen_by(0))
            return views.gradients(goal.logit_grad)

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
            misjudged = answers(logits(network, views.seen_by(0))) != batch.y
            end.copy_(torch.where(misjudged[:, None, None, None], views.x_adv[0], end))
    return ends
