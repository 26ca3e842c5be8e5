"""One view under several threat models at once: the worst of theirs, or the steepest way.

    max   of each image, of one finished attack a threat model, that of largest inner loss
          (Tramer & Boneh 2019, arXiv 1904.13000)
    msd   each step, of one candidate step a threat model, for each image that of largest inner
          loss; of all iterates the one of largest loss is the view
          (multi steepest descent, Maini et al. 2020, arXiv 1909.04068)

The choice is made for each image, as Maini et al.'s code makes it, and by the loss that is climbed.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastcat.batch import Batch
from fastcat.pgd import Goal, Inner, Network, Views, attacked, logits, room_for, worse
from fastcat.threat import Start, ThreatModel


def worst_of(network: Network, goal: Goal, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of candidates [M, B, C, H, W] the worst of each image: views, places [B], and losses [B]."""
    with torch.no_grad():
        losses = torch.stack([goal.loss(0, logits(network, one)) for one in candidates])
    # of equals the first; NaN is the largest
    loss, place = losses.max(0)
    return candidates[place, torch.arange(len(place), device=place.device)], place, loss


def worst(
    network: Network, inner: Inner, batch: Batch, candidates: Tensor, target: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Views [B, C, H, W] by `worst_of`, and of each image which candidate they are.

    target: as in `Goal`.
    """
    with attacked([network], [inner]):
        goal = Goal([network], [inner], batch.x, batch.y, 1.0, batch.y_mixed, batch.share, [target])
        return worst_of(network, goal, candidates)[:2]


def msd_start(inner: Inner) -> Start:
    """The image itself, as published, but where that has no gradient."""
    return inner.start if inner.loss == "kl" else "zero"


def ascend(t: int, model: ThreatModel, x_adv: Tensor, x: Tensor, grad: Tensor) -> None:
    """Move x_adv [1, B, C, H, W] in the t-th step, from 0 on, as its threat model does."""
    model.ascend(x_adv, x, grad)


def msd(
    network: Network,
    inner: Inner,
    batch: Batch,
    models: Sequence[ThreatModel],
    noise: Tensor,
    grad_scale: float = 1.0,
    target: Tensor | None = None,
    step: Callable[[int, ThreatModel, Tensor, Tensor, Tensor], None] = ascend,
) -> Tensor:
    """Adversarial views [B, C, H, W] by multi steepest descent, in the largest number of steps.

    noise: [B, C, H, W], of `msd_start`. grad_scale, target: as in `Goal`. step: in place
    of `ascend`.
    """
    x = batch.x.detach()
    views = Views([network], x)
    with attacked([network], [inner]):
        goal = Goal(
            [network], [inner], x, batch.y, grad_scale, batch.y_mixed, batch.share, [target]
        )
        views.begin([models[0].start(x, msd_start(inner), noise)])
        best, best_loss = x, torch.full((len(x),), -torch.inf, device=x.device)
        for t in range(max(model.steps for model in models)):
            grad = views.gradients(goal.logit_grad)
            candidates = room_for(len(models), x).copy_(views.x_adv)
            for model, candidate in zip(models, candidates, strict=True):
                step(t, model, candidate[None], x, grad)
            chosen, _, loss = worst_of(network, goal, candidates)
            views.begin([chosen])
            larger = worse(loss, best_loss)
            best = torch.where(larger[:, None, None, None], chosen, best)
            best_loss = torch.where(larger, loss, best_loss)
    return best
