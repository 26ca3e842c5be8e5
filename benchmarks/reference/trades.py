"""TRADES alone, as trades.py of Zhang et al. (2019, arXiv 1901.08573) runs it.

The prediction on x is recomputed in every step of the attack, and the loss forwards x twice in
train mode, once for each of its terms: 2S + 3 forwards, S + 3 backwards, 3 of weights.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from .plain import TRADES_BETA, PlainLoop, kl_batchmean


def trades_loss(y: Tensor, clean: Tensor, adv: Tensor, again: Tensor) -> Tensor:
    return F.cross_entropy(clean, y) + TRADES_BETA * kl_batchmean(again, adv)


class TradesLoop(PlainLoop):
    """As PlainLoop, for one peer of trades."""

    OBJECTIVES: ClassVar = {"trades": (trades_loss, ("clean", "adv", "clean"))}
