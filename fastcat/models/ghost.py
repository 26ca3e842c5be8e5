"""Ghost batch normalisation (Hoffer et al. 2017, arXiv 1705.08741): statistics of parts of a batch.

In train mode a BatchNorm2d normalises each of G groups of consecutive images by the group's own
mean and biased variance. With the momentum m of the layer one forward moves the running statistics

    r <- (1 - m) r + m / G * sum_g s_g        s_g: means, unbiased variances of the groups,

where Hoffer et al. weigh the groups of a batch by (1 - m)^(G - g), and torch's DataParallel, which
normalises likewise, keeps the first group's statistics alone. num_batches_tracked counts forwards.
Eval mode, parameters, buffers and their names are those of a plain BatchNorm.
"""

from functools import partial

import torch
from torch import Tensor, nn

from fastcat.errors import InputError


def split_norms(network: nn.Module, size: int) -> None:
    """Let every BatchNorm2d, also of subclasses, normalise groups of `size` images. In place.

    A batch of B images makes max(B // size, 1) groups, as equal as can be: where `size` does not
    divide B, groups are somewhat larger, never smaller, unless B itself is.
    Raises InputError for a network without such layers.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise InputError(
            f"bn-groups: {type(network).__name__} has no BatchNorm2d to split: leave it out"
        )
    for norm in norms:
        # the class stays: whoever looks for BatchNorms, as the frozen twin does, finds them
        norm.forward = partial(_forward, norm, size)  # type: ignore[method-assign]


def _forward(norm: nn.BatchNorm2d, size: int, x: Tensor) -> Tensor:
    """norm(x) of x [B, C, H, W], in train mode by groups; groups are views, whatever the layout."""
    whole = type(norm).forward
    groups = max(len(x) // size, 1)
    if not norm.training or groups == 1:
        return whole(norm, x)
    sizes = [len(x) // groups + (g < len(x) % groups) for g in range(groups)]
    momentum, parts = norm.momentum, []
    try:
        for left, part in zip(reversed(range(groups)), x.split(sizes), strict=True):
            if momentum is not None:
                # what the groups to come leave of it is momentum / groups
                norm.momentum = momentum / (groups - left * momentum)
            parts.append(whole(norm, part))
    finally:
        norm.momentum = momentum
    if momentum is not None and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked -= groups - 1
    return torch.cat(parts)
