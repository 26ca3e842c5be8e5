"""One view under several threat models at once: the worst of theirs, or the steepest way.

    max   of each image, of one finished attack a threat model, that of largest inner loss
          (Tramer & Boneh 2019, arXiv 1904.13000)
    msd   each step, of one candidate step a threat model, for each image that of largest inner
          loss; of all iterates the one of largest loss is the view
          (multi steepest descent, Maini et al. 2020, arXiv 1909.04068)

The choice is made for each image, as Maini et al.'s code makes it, and by the loss that is climbed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcat.attacks.pgd import (
    PGD,
    ClimbedLoss,
    Network,
    Views,
    attacked,
    constant_logits,
    room_for,
    stack_images,
    worse,
)
from fastcat.attacks.threat import Start, ThreatModel, Threats
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.batch import Batch
from fastcat.errors import InputError


def worst_of(
    network: Network, climbed: ClimbedLoss, candidates: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image the candidate of largest loss: views [B, C, H, W], their places [B], losses
    [B].

    candidates: [M, B, C, H, W]
    """
    with torch.no_grad():
        losses = torch.stack([climbed.loss(0, constant_logits(network, one)) for one in candidates])
    # of equals the first; NaN is the largest
    loss, place = losses.max(0)
    return candidates[place, torch.arange(len(place), device=place.device)], place, loss


def worst(
    network: Network, inner: PGD, batch: Batch, candidates: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Views [B, C, H, W] by `worst_of`, and of each image which candidate they are.

    target: as in `ClimbedLoss`.
    """
    with attacked([network], [inner]):
        climbed = ClimbedLoss(
            [network], [inner], batch.x, batch.y, 1.0, batch.y_mixed, batch.share, [target]
        )
        return worst_of(network, climbed, candidates)[:2]


def msd_start(attack: TrainingAttack) -> Start:
    """Where it starts under msd: at the image itself, as published, unless no gradient is there."""
    return attack.start if getattr(attack, "loss", None) == "kl" else "zero"


def ascend(t: int, model: ThreatModel, x_adv: Tensor, x: Tensor, grad: Tensor) -> None:
    """Move x_adv [1, B, C, H, W] in the t-th step, from 0 on, as its threat model does."""
    model.ascend(x_adv, x, grad)


def msd(
    network: Network,
    inner: PGD,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
    target: Tensor | None = None,
    step: Callable[[int, ThreatModel, Tensor, Tensor, Tensor], None] = ascend,
) -> Tensor:
    """Adversarial views [B, C, H, W] by multi steepest descent, in the largest number of steps.

    models: the threat models
    noise: start noise [B, C, H, W], of the start that `msd_start` gives
    grad_scale, target: as in `ClimbedLoss`
    step: what moves the images under one threat model, in place of `ascend`
    """
    x = batch.x.detach()
    views = Views([network], x)
    with attacked([network], [inner]):
        climbed = ClimbedLoss(
            [network], [inner], x, batch.y, grad_scale, batch.y_mixed, batch.share, [target]
        )
        views.begin([models[0].start(x, msd_start(inner), noise)])
        best, best_loss = x, torch.full((len(x),), -torch.inf, device=x.device)
        for t in range(max(model.steps for model in models)):
            grad = views.gradients(climbed.logit_grad)
            candidates = room_for(len(models), x).copy_(views.x_adv)
            for model, candidate in zip(models, candidates, strict=True):
                step(t, model, candidate[None], x, grad)
            chosen, _, loss = worst_of(network, climbed, candidates)
            views.begin([chosen])
            larger = worse(loss, best_loss)
            best = torch.where(larger[:, None, None, None], chosen, best)
            best_loss = torch.where(larger, loss, best_loss)
    return best


@dataclass(frozen=True, kw_only=True)
class Max(PGD):
    """PGD under each threat model; of each image the end of largest loss."""

    def choose(self, task: PeerAttack, work: Work, ends: Sequence[Tensor]) -> dict[str, Tensor]:
        candidates, target = stack_images(ends), work.targets.get(task.teacher)
        view, which = worst(work.networks[task], self, work.batch, candidates, target)
        return {task.views[0]: view, f"which{task.peer}": which}


@dataclass(frozen=True, kw_only=True)
class MSD(PGD):
    """Multi steepest descent over the threat models."""

    def check(self, threats: Threats, peer: int) -> None:
        if threats.models[0].restarts > 1:
            raise InputError("msd starts once: type --restarts 1")

    def starts(self, threats: Threats) -> list[tuple[ThreatModel, Start]]:
        return [(threats.models[0], msd_start(self))]

    @classmethod
    def family(cls) -> type[TrainingAttack]:
        return TrainingAttack

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        view = msd(
            work.networks[task],
            self,
            work.batch,
            task.threats.models,
            work.start_of(task)[0],
            work.grad_scale,
            work.targets.get(task.teacher),
        )
        return {task.views[0]: view}
