"""What attacks climb, written with torch's own losses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def climbed(loss: str, net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """What each attack climbs, per image, written with torch's own losses."""
    z = net(x_adv)
    if loss == "kl":
        return F.kl_div(z.log_softmax(1), net(x).softmax(1), reduction="none").sum(1)
    if loss == "margin":
        others = torch.stack(
            [torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(z, y, strict=True)]
        )
        return others - z[torch.arange(len(y)), y]
    if loss == "dlr":
        largest = z.sort(dim=1, descending=True).values
        return climbed("margin", net, x, x_adv, y) / (largest[:, 0] - largest[:, 2])
    if loss == "boosted_ce":
        p = z.softmax(1)
        wrong = torch.stack(
            [torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p, y, strict=True)]
        )
        return F.cross_entropy(z, y, reduction="none") - (1.0001 - wrong).log()
    return F.cross_entropy(z, y, reduction="none")
