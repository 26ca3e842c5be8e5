"""CAT's ablation with PGD and CW on one network, in the manner of train_cat.py.

  alpha [CE(z(x_pgd), y) + CE(z(x_cw), y)]
    + (1 - alpha) [KL_batchmean(sg[p(x_cw)] || p(x_pgd)) + KL_batchmean(sg[p(x_pgd)] || p(x_cw))]

Source: Liu et al., CAT, 2023, arXiv 2303.14922, which has neither a formula nor code of it: this is
the loss of its two networks, and its attack by backward(), which throws the gradients of all
weights away, once on CE and once on the margin of Carlini and Wagner; there is no forward for the
log. 2S + 2 forwards, 2S + 2 backwards and as many of weights.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .plain import PlainLoop, at_loss


class PgdCwLoop(PlainLoop):
    """As PlainLoop, for one peer of pgd-cw."""

    OBJECTIVES: ClassVar = {"pgd-cw": (at_loss, ("adv", "cw"))}

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        model = self.models[0].eval()
        views = {"clean": x}
        for view, loss in (("adv0", self.cross_entropy), ("cw0", self.margin)):
            views[view] = self.pgd_attack(0, x, y, self.steps, loss)
        model.train()
        return views

    def margin(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        z = self.forward(k, x_adv)
        label = F.one_hot(y, z.shape[1]).bool()
        return (z.masked_fill(label, -torch.inf).amax(dim=1) - z[label]).mean()

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        pgd, cw = (self.forward(0, views[view]) for view in ("adv0", "cw0"))
        guidance = torch.zeros_like(pgd[0, 0])
        for own, other in ((pgd, cw), (cw, pgd)):
            taught = F.softmax(other, dim=1).detach()
            guidance += F.kl_div(F.log_softmax(own, dim=1), taught, reduction="batchmean")
        ce = at_loss(y, pgd) + at_loss(y, cw)
        return [self.alpha * ce + (1 - self.alpha) * guidance], None
