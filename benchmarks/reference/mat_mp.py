"""MAT-MP: a specialist of each norm and a generalist of all of them teach one another.

Between peers as mat.py, but a generalist of avg is taught on each of its views by the specialist
of that norm, one of max for each image by the specialist of the norm that won it. Source: Liu et
al., 2021, arXiv 2112.05005, section on multiple perturbations, without public code: each peer is
attacked and costs as in union.py, with which the paper compares, but by MART's boosted
cross-entropy, and forwards the clean images once, with a graph that is then cut off.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .mat import MatLoop
from .union import UnionLoop


class MatMpLoop(UnionLoop, MatLoop):
    """As UnionLoop, for a generalist and specialists of boosted."""

    def lessons(self, k: int, z: list[dict[str, Tensor]]) -> Tensor:
        threat = self.threats[k]
        if threat not in ("avg", "max"):
            return super().lessons(k, z)
        specialists = [self.threats.index(ball.norm) for ball in self.balls]
        taught = torch.stack([F.softmax(z[j]["clean"], dim=1) for j in specialists]).detach()
        if threat == "max":
            taught = taught[self.winners[k], torch.arange(taught.shape[1], device=taught.device)]
            taught = taught[None]
        each = [
            F.kl_div(F.log_softmax(z[k][view], dim=1), p, reduction="batchmean")
            for view, p in zip(self.own_views[k], taught, strict=True)
        ]
        return torch.stack(each).mean()
