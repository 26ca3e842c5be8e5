"""Ghost batch normalisation, group by group and spelled out.

y = w (x - mean_g) / sqrt(var_g + eps) + b with mean and biased variance of the image's group g,
over its images and pixels. r <- (1 - m) r + m s, s the mean over groups of their means or of their
unbiased variances.
Source: Hoffer, Hubara, Soudry 2017, "Train longer, generalize better", Algorithm 1, but for the
running statistics, which there weigh later groups more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GhostNorm(nn.BatchNorm2d):
    """sizes: images in each group of consecutive ones."""

    sizes: Sequence[int]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert len(x) == sum(self.sizes)
        outs, means, variances = [], [], []
        begin = 0
        for size in self.sizes:
            group = x[begin : begin + size]
            begin += size
            count = group.numel() / group.shape[1]
            mean = group.mean((0, 2, 3), keepdim=True)
            square = ((group - mean) ** 2).sum((0, 2, 3), keepdim=True)
            normal = (group - mean) / torch.sqrt(square / count + self.eps)
            outs.append(self.weight.view(1, -1, 1, 1) * normal + self.bias.view(1, -1, 1, 1))
            means.append(mean.flatten())
            variances.append(square.flatten() / (count - 1))
        if self.track_running_stats:
            with torch.no_grad():
                for running, of_groups in (
                    (self.running_mean, means),
                    (self.running_var, variances),
                ):
                    s = sum(of_groups) / len(of_groups)
                    running.copy_((1 - self.momentum) * running + self.momentum * s)
                self.num_batches_tracked += 1
        return torch.cat(outs)


def use_ghost_norms(net: nn.Module, sizes: Sequence[int]) -> None:
    """Turn every BatchNorm2d of the network into a GhostNorm of these groups."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = GhostNorm
            module.sizes = sizes
