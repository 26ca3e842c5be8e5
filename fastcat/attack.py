"""PGD on all networks at once (Madry et al. 2018): every adversarial view advances together.

An attack reads a network and leaves no trace in it: no gradients in parameters, no BatchNorm
statistics, modes restored, also when it is interrupted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fastcat.batch import by_share
from fastcat.errors import InputError, nearest
from fastcat.frozen import Frozen
from fastcat.guard import check_images
from fastcat.kernels import losses
from fastcat.kernels.attack_logit_grad import KINDS, attack_logit_grad
from fastcat.modes import attack_mode
from fastcat.threat import Start, ThreatModel

Network = Callable[[Tensor], Tensor]
AttackLoss = Literal["ce", "kl", "margin", "dlr", "boosted_ce"]

# by the name that `attack(loss=...)` and the objectives use: what is climbed, from logits [B, C]
# and a target (labels [B], or for "kl" the clean logits [B, C]) to [B]
ATTACK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": losses.ce,
    "kl": lambda z, clean: losses.kl(clean, z),
    "margin": losses.margin,
    "dlr": losses.dlr,
    "boosted_ce": losses.boosted_ce,
}


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A method's inner maximisation: what it climbs, from where, and how BatchNorm behaves.

    bn "eval" normalises by the running statistics; "train" runs the network in train mode with
    statistics of the batch, the running ones untouched.
    """

    loss: AttackLoss = "ce"
    start: Start = "uniform"
    bn: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        """Raise InputError for a name that is not known: a slip would be a weaker attack."""
        known = {"loss": ATTACK_LOSSES, "start": get_args(Start), "bn": ("eval", "train")}
        for field, names in known.items():
            name = getattr(self, field)
            if name not in names:
                raise InputError(f"unknown attack {field} {name!r}: {nearest(name, names)}")
        if (self.loss, self.start) == ("kl", "zero"):
            raise InputError(
                "the KL from the clean prediction has no gradient at the image itself: "
                "start at gaussian or uniform noise"
            )


def at_least_float32(z: Tensor) -> Tensor:
    """Losses are never computed in less."""
    return z if z.dtype == torch.float64 else z.float()


def room_for(views: int, x: Tensor) -> Tensor:
    """Uninitialised [views, *x.shape], each laid out like x."""
    one = torch.empty_like(x)
    shape, strides = (views, *x.shape), (one.numel(), *one.stride())
    return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """[K, B, C, H, W], channels-last, as networks give gradients; `torch.stack` would rearrange."""
    return torch.stack([one.permute(0, 2, 3, 1) for one in images]).permute(0, 1, 4, 2, 3)


class _Views:
    """Adversarial views under way, one for each network, on which they are updated in place.

    They are float32, since a step would be lost in less; frozen networks that compute in less read
    a copy in their own type.
    """

    def __init__(self, networks: Sequence[Network], x: Tensor) -> None:
        self.networks = networks
        self.x_adv = room_for(len(networks), x)
        dtypes = {network.dtype for network in networks if isinstance(network, Frozen)} - {x.dtype}
        self.low = torch.empty_like(self.x_adv, dtype=dtypes.pop()) if dtypes else None

    def begin(self, starts: Sequence[Tensor]) -> None:
        for k, start in enumerate(starts):
            self.x_adv[k].copy_(start)
        if self.low is not None:
            self.low.copy_(self.x_adv)

    def seen_by(self, k: int) -> Tensor:
        reads_low = self.low is not None and isinstance(self.networks[k], Frozen)
        return self.low[k] if reads_low else self.x_adv[k]  # type: ignore[index]

    @torch.no_grad()
    def logits(self, k: int) -> Tensor:
        return self.networks[k](self.seen_by(k))

    def gradients(self, logit_grad: Callable[[Tensor], Tensor]) -> Tensor:
        """[K, B, C, H, W], by a function from logits [K, B, classes] to their gradient."""
        leaves = [self.seen_by(k).detach().requires_grad_() for k in range(len(self.networks))]
        with torch.enable_grad():
            z = [network(leaf) for network, leaf in zip(self.networks, leaves, strict=True)]
        dz = logit_grad(torch.stack([z_k.detach() for z_k in z]))
        grads = [
            torch.autograd.grad(z_k, leaf, dz_k.to(z_k.dtype))[0]
            for z_k, leaf, dz_k in zip(z, leaves, dz, strict=True)
        ]
        if len(grads) == 1:
            return grads[0][None]
        return stack_images(grads)


def attack_all(
    networks: Sequence[Network],
    inners: Sequence[Inner],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    noise: Tensor,
    grad_scale: float = 1.0,
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """Adversarial views [K, B, C, H, W] of x, one for each of K networks.

    noise: [restarts, K, B, C, H, W] from `ThreatModel.draw_noise`. Of several restarts each image
    keeps the one of the largest inner loss. grad_scale multiplies the climbed loss, which changes
    no sign but keeps float16 gradients from underflowing. y_mixed, share: those of a `Batch`.
    """
    x = x.detach()
    kinds = [KINDS[inner.loss] for inner in inners]
    views = _Views(networks, x)
    with ExitStack() as modes:
        for network, inner in zip(networks, inners, strict=True):
            model = network.model if isinstance(network, Frozen) else network
            modes.enter_context(attack_mode(model, inner.bn))

        views.begin([x] * len(networks))
        # clean logits are constant during the attack, so computed once and not once a step
        targets = {k: views.logits(k) for k, inner in enumerate(inners) if inner.loss == "kl"}
        # where another loss is climbed, it is not read
        padded = [
            targets.get(k, next(iter(targets.values()))) for k in range(len(kinds)) if targets
        ]
        clean = torch.stack(padded) if targets else None

        def logit_grad(z: Tensor) -> Tensor:
            def by(labels: Tensor) -> Tensor:
                target = z if clean is None else clean
                return attack_logit_grad(z, labels, target, kinds, grad_scale)

            if y_mixed is None or share is None:
                return by(y)
            return by_share(by(y), by(y_mixed), share[:, None])

        def inner_loss(k: int) -> Tensor:
            z, loss = at_least_float32(views.logits(k)), ATTACK_LOSSES[inners[k].loss]
            if k in targets:
                return loss(z, at_least_float32(targets[k]))
            if y_mixed is None or share is None:
                return loss(z, y)
            return by_share(loss(z, y), loss(z, y_mixed), share)

        worst = x.expand(len(networks), *x.shape)
        worst_loss = torch.full((len(networks), len(x)), -torch.inf, device=x.device)
        for noise_KB in noise:
            views.begin(
                [threat.start(x, inner.start, noise_KB[k]) for k, inner in enumerate(inners)]
            )
            for _ in range(threat.steps):
                threat.ascend(views.x_adv, x, views.gradients(logit_grad), views.low)
            if len(noise) == 1:
                return views.x_adv
            with torch.no_grad():
                loss_KB = torch.stack([inner_loss(k) for k in range(len(networks))])
            # NaN counts as the largest, as it does for argmax; of equals the first is kept
            worse_KB = ~(loss_KB <= worst_loss) & ~worst_loss.isnan()
            worst = torch.where(worse_KB[..., None, None, None], views.x_adv, worst)
            worst_loss = torch.where(worse_KB, loss_KB, worst_loss)
        return worst


def attack(
    model: Network,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    loss: AttackLoss = "ce",
    start: Start = "uniform",
    bn: Literal["eval", "train"] = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images of x under `threat`, like x in shape and dtype.

    model: any nn.Module or callable from images [B, C, H, W] in [0, 1] to logits [B, C]; it is
    attacked in the BatchNorm mode `bn` and left exactly as it was. y: [B] class indices.
    loss: "ce", "kl" (from the clean prediction, TRADES), "margin" (Carlini-Wagner), "dlr" (Croce
    & Hein) or "boosted_ce" (MART).
    Raises InputError for an unknown loss, start or bn and for images outside [0, 1].
    """
    check_images(x)
    inner = Inner(loss=loss, start=start, bn=bn)
    noise = torch.stack([threat.draw_noise(start, x, generator) for _ in range(threat.restarts)])
    return attack_all([model], [inner], x, y, threat, noise[:, None])[0]
