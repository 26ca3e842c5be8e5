"""Adversarial weight perturbation (AWP, Wu et al. 2020, arXiv 2004.05884): w + v is what learns.

    v = gamma ||w|| g / ||g||     for each weight of more than one dimension, else v = 0
    w <- w - update(w + v)

g is the gradient, at w, of the loss that the peer descends: CE(x_adv) is AT-AWP, CE + beta KL is
TRADES-AWP; in a collaboration its total with the guidance, and teachers are perturbed like
students, as one forward of everyone. Images are attacked at w; losses, gradients, weight decay,
momentum and BatchNorm's running statistics see w + v. The public code finds g by a step of a
second network and takes v away from the stepped weights again, with three roundings; here g is the
gradient itself and the update goes to the bits of w put aside, with one. Its AT-AWP attacks as
`at:bn=moving:log_forward=true` does, but the first batch of every later epoch in the eval mode that
its test has left, here like all others. Its TRADES-AWP forwards adversarial images before clean
ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastcat.step.sgd import FlatSGD


class WeightPerturbation:
    """The adversarial perturbation v of one peer's weights w.

    strength: gamma, on the device, so that a captured step follows the warm-up. 0: v is 0
    perturbed: whether the optimizer's weights are w + v at present
    """

    def __init__(self, model: nn.Module, optimizer: FlatSGD, gamma: float) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # as published: convolutions and linear layers, neither BatchNorm nor biases
        chosen = [i for i, (name, p) in enumerate(named) if p.dim() > 1 and "weight" in name]
        weights = optimizer.views(optimizer.flat)
        self.weights = [weights[i] for i in chosen]
        self.grads = [optimizer.grad_views[i] for i in chosen]
        self.optimizer = optimizer
        self.gamma = gamma
        self.strength = optimizer.lr.new_tensor(gamma)
        self.kept = optimizer.flat.clone()
        self.perturbed = False

    def set_active(self, active: bool) -> None:
        self.strength.fill_(self.gamma if active else 0.0)

    @torch.no_grad()
    def perturb(self) -> None:
        """w <- w + v, from the gathered gradients, under any loss scale."""
        flat, grad = self.optimizer.flat, self.optimizer.flat.grad
        assert grad is not None
        self.perturbed = True
        self.kept.copy_(flat)
        # what overflowed in float16 must not get into weights and so into BatchNorm's statistics
        grad.nan_to_num_(0.0, 0.0, 0.0)
        sizes = torch.stack(torch._foreach_norm(self.weights))
        lengths = torch.stack(torch._foreach_norm(self.grads))
        factors = torch.where(lengths > 0, self.strength * sizes / lengths, 0)
        torch._foreach_mul_(self.grads, list(factors.unbind()))
        torch._foreach_add_(self.weights, self.grads)

    @torch.no_grad()
    def restore(self, scale: Callable[[Tensor], Tensor]) -> None:
        """Put w back, and add weight_decay * v to the gathered gradients: the update is then that
        at w + v.

        Call it between `FlatSGD.gather` and its `step`.
        scale: the loss scale of the gradients
        """
        flat, grad = self.optimizer.flat, self.optimizer.flat.grad
        assert grad is not None
        grad += scale(self.optimizer.weight_decay * (flat - self.kept))
        self.undo()

    @torch.no_grad()
    def undo(self) -> None:
        """w + v <- w, to the bit."""
        if self.perturbed:
            self.optimizer.flat.copy_(self.kept)
        self.perturbed = False
