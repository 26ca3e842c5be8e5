"""PGD adversarial training alone, as train_cifar.py of Rice et al. (robust_overfitting, 2020) runs.

Beside what plain.py lists, of which the attack by backward() is the greatest, it forwards the
finished attack once more, with a graph, to keep the worst of its restarts although there is one,
and the clean images after the step for the log: F = S + 3 forwards and S + 1 backwards, those of
weights included. BatchNorm is in eval mode during the attack, as Pang et al. (Bag of Tricks, 2021)
run the same code with --BNeval; the original has it in train mode, with the same counts.
"""

import torch.nn.functional as F
from torch import Tensor

from .plain import PlainLoop


class AtLoop(PlainLoop):
    """As PlainLoop, for one peer of at."""

    def logs_accuracy(self) -> bool:
        return True

    def seek(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        found = super().seek(k, x, y)
        worst, worst_loss = x.clone(), y.new_zeros(len(y), dtype=x.dtype)
        loss = self.climbed(self.loss_of_each, k, found, y)
        worse = loss >= worst_loss
        worst[worse] = found[worse]
        return worst

    def loss_of_each(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.forward(k, x_adv), y, reduction="none")
