"""Collaborative adversarial training as the papers' public code runs it, to be timed beside ours.

Peer k has weights w_k, a method and, unless that is natural, its adversarial view x_k; v_k is x_k,
or x for a natural peer. A step descends

  alpha sum_k L_k + (1 - alpha) sum_k sum_{j != k} KL_batchmean(sg[p_j(v_k)] || p_k(v_k))

in all w_k at once, or L_1 where there is one peer. L_k and x_k are those of train_cat.py (Liu et
al., CAT, 2023, arXiv 2303.14922; run with --BNeval as its train_cat.sh does), and of mart.py
(Wang et al., MART, 2020). Written anew from the formulas and a reading of that code; it uses
nothing but torch. The files beside this one change what other papers do otherwise.

What costs time here and could be had for less, because the published code has it:

- TRADES recomputes the prediction on x in every step of its attack, where nothing changes it;
- AT and ALP attack by loss.backward(): gradients of all weights are computed and thrown away;
- the forwards of peers on each other's views build graphs that are then cut off;
- one more forward of the first peer on x after the step, for the training accuracy in the log;
- the Gaussian start is drawn on the CPU and copied;
- the host waits for every logged number: K + 2 `.item()` a step, four for a pair.

With S attack steps a step of K > 1 peers costs, in forwards of one image (a gradient of the
activations and one of the weights count one each), 3S for an attack of trades, at or alp and 2S
for one of mart; 3 for each view of a peer's own; 1 for each view of another's; 1 for the log:
75 for trades and alp with S = 10. One peer alone has no log. An evaluation costs 3S + 2 a peer.

Kinder than the published code: a graph is freed when it is of no more use, not when the next step
overwrites its name, and bookkeeping that nobody reads is left out. Layout, TF32 and the like are
PyTorch's defaults. More than two peers, or pairs of other methods, were not published: they follow
the same pattern.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TRADES_BETA = 6.0
MART_BETA = 5.0
GAUSSIAN_SCALE = 0.001


def kl_batchmean(z_target: Tensor, z: Tensor) -> Tensor:
    """KL(softmax(z_target) || softmax(z)), mean over the batch; both logits get gradient.

    On probabilities, as published: one that underflows to 0 makes the target's gradient NaN.
    """
    return F.kl_div(F.log_softmax(z, dim=1), F.softmax(z_target, dim=1), reduction="batchmean")


def natural_loss(y: Tensor, clean: Tensor) -> Tensor:
    return F.cross_entropy(clean, y)


def at_loss(y: Tensor, adv: Tensor) -> Tensor:
    return F.cross_entropy(adv, y)


def trades_loss(y: Tensor, clean: Tensor, adv: Tensor) -> Tensor:
    return F.cross_entropy(clean, y) + TRADES_BETA * kl_batchmean(clean, adv)


def alp_loss(y: Tensor, adv: Tensor, clean: Tensor) -> Tensor:
    ce = 0.5 * (F.cross_entropy(adv, y) + F.cross_entropy(clean, y))
    return ce + F.mse_loss(adv, clean)


def boosted_of_each(y: Tensor, adv: Tensor) -> Tensor:
    q = F.softmax(adv, dim=1)
    largest = torch.argsort(q, dim=1)[:, -2:]
    wrong = torch.where(largest[:, 1] == y, largest[:, 0], largest[:, 1])
    margin = F.nll_loss(torch.log(1.0001 - q + 1e-12), wrong, reduction="none")
    return F.cross_entropy(adv, y, reduction="none") + margin


def boosted_loss(y: Tensor, adv: Tensor) -> Tensor:
    return boosted_of_each(y, adv).mean()


def mart_loss(y: Tensor, clean: Tensor, adv: Tensor) -> Tensor:
    boosted = boosted_loss(y, adv)
    q, p = F.softmax(adv, dim=1), F.softmax(clean, dim=1)
    p_y = p.gather(1, y[:, None])[:, 0]
    kl = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(dim=1)
    return boosted + MART_BETA * (kl * (1.0000001 - p_y)).sum() / len(y)


class PlainLoop:
    """K peers, their SGD optimizers and the settings of the attack.

    models: the peers' networks, trained in place; logits `[B, classes]` from images `[B, C, H, W]`
    in [0, 1]. methods: one of OBJECTIVES for each. eps, step_size: pixels in [0, 1].
    alpha: weight of the peers' own losses, 1 - alpha that of what they teach each other.

    OBJECTIVES: by method the loss, of labels and of logits on the views that follow. In this order
    the views are forwarded, and each moves BatchNorm's statistics.
    """

    OBJECTIVES: ClassVar[dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]]] = {
        "natural": (natural_loss, ("clean",)),
        "at": (at_loss, ("adv",)),
        "trades": (trades_loss, ("clean", "adv")),
        "alp": (alp_loss, ("adv", "clean")),
        "mart": (mart_loss, ("clean", "adv")),
        "boosted": (boosted_loss, ("adv",)),
    }

    def __init__(
        self,
        models: Sequence[nn.Module],
        methods: Sequence[str],
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
        alpha: float = 0.05,
    ) -> None:
        unknown = set(methods) - set(self.OBJECTIVES)
        if unknown or not models or len(models) != len(methods):
            raise ValueError(
                f"got {len(models)} models for the methods {list(methods)}; "
                f"expected one of {', '.join(self.OBJECTIVES)} for each model"
            )
        self.models = [model.train() for model in models]
        self.methods = list(methods)
        self.eps = eps
        self.step_size = step_size
        self.steps = steps
        self.alpha = alpha
        self.optimizers = [
            torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
            for model in models
        ]
        self.own_views = [
            [view if view == "clean" else f"{view}{k}" for view in self.OBJECTIVES[method][1]]
            for k, method in enumerate(methods)
        ]
        self.taught_view = [
            "clean" if method == "natural" else f"adv{k}" for k, method in enumerate(methods)
        ]
        # what peer k reads of the others
        self.read_view = self.taught_view

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """One training step on images `[B, C, H, W]` and labels `[B]`.

        Returns loss0, loss1, ... and, of several peers, guidance (the sum of what each
        learns from the others, unweighted) and accuracy (of the first peer on x after the step).
        """
        losses, guidance = self.update(self.all_views(x, y), y)
        log = {f"loss{k}": loss.item() for k, loss in enumerate(losses)}
        if guidance is not None:
            log["guidance"] = guidance.item()
        if self.logs_accuracy():
            log["accuracy"] = self.accuracy(0, x, y)
        return log

    def logs_accuracy(self) -> bool:
        return len(self.models) > 1

    def all_views(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        views = {"clean": x}
        for k, method in enumerate(self.methods):
            if method != "natural":
                views[f"adv{k}"] = self.attack(k, x, y)
        return views

    def update(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Losses, one joint backward and an SGD step of every peer."""
        losses, guidance = self.losses(views, y)
        alone = torch.stack(losses).sum()
        self.descend(alone if guidance is None else self.total(losses, guidance))
        return losses, guidance

    def total(self, losses: list[Tensor], guidance: Tensor) -> Tensor:
        return self.alpha * torch.stack(losses).sum() + (1 - self.alpha) * guidance

    def evaluate(self, x: Tensor, y: Tensor, steps: int = 20) -> list[tuple[float, float]]:
        """Of each peer its accuracy on x and on x attacked by PGD, as shares of the batch."""
        accuracies = []
        for k in range(len(self.methods)):
            model = self.models[k].eval()
            x_adv = self.pgd_attack(k, x, y, steps, self.cross_entropy)
            robust = self.accuracy(k, x_adv, y)
            accuracies.append((self.accuracy(k, x, y), robust))
            model.train()
        return accuracies

    # attacks: BatchNorm in eval mode, weights keep their requires_grad

    def attack(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """The adversarial view of peer k, made as its method makes it."""
        self.models[k].eval()
        x_adv = self.seek(k, x, y)
        self.models[k].train()
        return x_adv

    def seek(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        method = self.methods[k]
        if method == "trades":
            return self.gaussian_attack(k, x, self.kl_to_clean, x)
        if method == "mart":
            return self.gaussian_attack(k, x, self.cross_entropy, y)
        if method == "boosted":
            return self.gaussian_attack(k, x, self.boosted, y)
        return self.pgd_attack(k, x, y, self.steps, self.cross_entropy)

    def gaussian_attack(
        self, k: int, x: Tensor, loss: Callable[..., Tensor], target: Tensor
    ) -> Tensor:
        return self.climb(k, x + self.gaussian_start(k, x), x, loss, target)

    def climb(
        self, k: int, x_adv: Tensor, x: Tensor, loss: Callable[..., Tensor], target: Tensor
    ) -> Tensor:
        for _ in range(self.steps):
            x_adv.requires_grad_()
            (grad,) = torch.autograd.grad(self.climbed(loss, k, x_adv, target), [x_adv])
            x_adv = self.ascend(x_adv.detach(), grad, x)
        return x_adv

    def ascend(self, x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
        x_adv = x_adv + self.step_size * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - self.eps), x + self.eps)
        return x_adv.clamp(0.0, 1.0)

    def pgd_attack(
        self, k: int, x: Tensor, y: Tensor, steps: int, loss: Callable[..., Tensor]
    ) -> Tensor:
        """PGD of AT, of ALP and of the evaluation; it leaves gradients in the weights' .grad."""
        delta = self.uniform_start(k, x)
        delta = torch.max(torch.min(delta, 1 - x), -x)
        delta.requires_grad_()
        for _ in range(steps):
            self.climbed(loss, k, x + delta, y).backward()
            assert delta.grad is not None
            moved = delta.detach() + self.step_size * delta.grad.sign()
            moved = moved.clamp(-self.eps, self.eps)
            delta.data = torch.max(torch.min(moved, 1 - x), -x)
            delta.grad.zero_()
        return (x + delta.detach()).clamp(0.0, 1.0)

    def gaussian_start(self, k: int, x: Tensor) -> Tensor:
        return GAUSSIAN_SCALE * torch.randn(x.shape).to(x)

    def uniform_start(self, k: int, x: Tensor) -> Tensor:
        return torch.zeros_like(x).uniform_(-self.eps, self.eps)

    # forwards and losses

    def forward(self, k: int, x: Tensor) -> Tensor:
        return self.models[k](x)

    def accuracy(self, k: int, x: Tensor, y: Tensor) -> float:
        """For the log and the evaluation; its forward builds a graph that nobody uses."""
        return (self.forward(k, x).argmax(dim=1) == y).sum().item() / len(y)

    def climbed(self, loss: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """The loss that an attack ascends."""
        return loss(*arguments)

    def kl_to_clean(self, k: int, x_adv: Tensor, x: Tensor) -> Tensor:
        return self.kl_to(k, x_adv, self.forward(k, x))

    def kl_to(self, k: int, x_adv: Tensor, z_target: Tensor) -> Tensor:
        log_q = F.log_softmax(self.forward(k, x_adv), dim=1)
        return F.kl_div(log_q, F.softmax(z_target, dim=1), reduction="sum")

    def cross_entropy(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.forward(k, x_adv), y)

    def boosted(self, k: int, x_adv: Tensor, y: Tensor) -> Tensor:
        return boosted_loss(y, self.forward(k, x_adv))

    def losses(self, views: dict[str, Tensor], y: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Each peer's own loss, and the guidance term, None of one peer."""
        peers = range(len(self.models))
        losses: list[Tensor] = []
        z: list[dict[str, Tensor]] = []
        for k in peers:
            own = [self.forward(k, views[view]) for view in self.own_views[k]]
            loss, _ = self.OBJECTIVES[self.methods[k]]
            losses.append(loss(y, *own))
            z.append(dict(zip(self.own_views[k], own, strict=True)))
        if len(peers) == 1:
            return losses, None

        for k in peers:
            for view in self.read_view:
                if view not in z[k]:
                    z[k][view] = self.forward(k, views[view])
        guidance = torch.zeros_like(losses[0])
        for k in peers:
            guidance = guidance + self.lessons(k, z)
        return losses, guidance

    def lessons(self, k: int, z: list[dict[str, Tensor]]) -> Tensor:
        """The guidance term of peer k; z: every peer's logits by view."""
        log_own = F.log_softmax(z[k][self.taught_view[k]], dim=1)
        total = torch.zeros_like(log_own[0, 0])
        for j in range(len(z)):
            if j != k:
                taught = F.softmax(z[j][self.read_view[k]], dim=1).detach()
                total = total + F.kl_div(log_own, taught, reduction="batchmean")
        return total

    def descend(self, loss: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
