"""The mode in which a network is attacked and evaluated; afterwards it is as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn

# from images [B, C, H, W] to logits [B, classes]
Network = Callable[[Tensor], Tensor]

# how BatchNorm behaves: by its running statistics, by those of the batch with the running ones left
# alone, or by those of the batch with the running ones moving, as in training
NormMode = Literal["eval", "train", "moving"]


@contextmanager
def attack_mode(network: Callable, bn: str) -> Iterator[None]:
    """Within it the network is in eval mode or in train mode; afterwards each module is as before.

    bn: a `NormMode`
    """
    if not isinstance(network, nn.Module):
        yield
        return
    before = [(module, module.training) for module in network.modules()]
    tracking = [
        module
        for module, _ in before
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    try:
        network.train(bn != "eval")
        for norm in tracking:
            # read in train mode alone: statistics of the batch, the running ones left alone
            norm.track_running_stats = bn != "train"
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
        for module, training in before:
            module.training = training
