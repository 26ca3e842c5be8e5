"""PGD on all networks at once (Madry et al. 2018): every adversarial view advances together.

An attack reads a network and leaves no trace in it: no gradients in parameters, no BatchNorm
statistics, modes restored, also when it is interrupted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastcat import losses
from fastcat.errors import InputError, nearest
from fastcat.threat import Start, ThreatModel, draw_noise

Network = Callable[[Tensor], Tensor]

# by the name that `attack(loss=...)` and the objectives use: what is climbed, from logits [B, C]
# and a target (labels [B], or for "kl" the clean logits [B, C]) to [B]
ATTACK_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": losses.ce,
    "kl": lambda z, clean: losses.kl(clean, z),
    "margin": losses.margin,
}


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A method's inner maximisation: what it climbs, from where, and how BatchNorm behaves.

    bn "eval" normalises by the running statistics; "train" runs the network in train mode with
    statistics of the batch, the running ones untouched.
    """

    loss: Literal["ce", "kl", "margin"] = "ce"
    start: Start = "uniform"
    bn: Literal["eval", "train"] = "eval"

    def __post_init__(self) -> None:
        """Raise InputError for a name that is not known: a slip would be a weaker attack."""
        known = {"loss": ATTACK_LOSSES, "start": get_args(Start), "bn": ("eval", "train")}
        for field, names in known.items():
            name = getattr(self, field)
            if name not in names:
                raise InputError(f"unknown attack {field} {name!r}: {nearest(name, names)}")


@contextmanager
def attack_mode(network: Network, bn: str) -> Iterator[None]:
    """`network` in eval mode, or in train mode with frozen statistics; restored on leaving."""
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
        network.train(bn == "train")
        for norm in tracking:
            # read in train mode alone: statistics of the batch, the running ones left alone
            norm.track_running_stats = bn != "train"
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True
        for module, training in before:
            module.training = training


def logits_of(network: Network, x: Tensor) -> Tensor:
    """The network's logits, at least float32: losses and targets are never computed lower."""
    z = network(x)
    return z if z.dtype == torch.float64 else z.float()


def attack_all(
    networks: Sequence[Network],
    inners: Sequence[Inner],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    noise: Tensor,
    grad_scale: float = 1.0,
) -> Tensor:
    """Adversarial views [K, B, C, H, W] of x, one for each of K networks.

    noise: [restarts, K, B, C, H, W] from `draw_noise`. Of several restarts each image keeps the
    one of the largest inner loss. grad_scale multiplies the climbed loss, which changes no sign
    but keeps float16 gradients from underflowing.
    """
    x = x.detach()
    with ExitStack() as modes:
        for network, inner in zip(networks, inners, strict=True):
            modes.enter_context(attack_mode(network, inner.bn))
        with torch.no_grad():
            # constant during the attack, so computed once and not once a step
            targets = [
                logits_of(network, x) if inner.loss == "kl" else y
                for network, inner in zip(networks, inners, strict=True)
            ]

        def inner_loss(k: int, x_adv_k: Tensor) -> Tensor:
            return ATTACK_LOSSES[inners[k].loss](logits_of(networks[k], x_adv_k), targets[k])

        def gradient(k: int, x_adv_k: Tensor) -> Tensor:
            x_adv_k = x_adv_k.detach().requires_grad_()
            with torch.enable_grad():
                climbed = inner_loss(k, x_adv_k).sum() * grad_scale
            return torch.autograd.grad(climbed, x_adv_k)[0]

        views = range(len(networks))
        worst = x.expand(len(networks), *x.shape)
        worst_loss = torch.full((len(networks), len(x)), -torch.inf, device=x.device)
        for noise_KB in noise:
            x_adv = torch.stack([threat.start(x, inners[k].start, noise_KB[k]) for k in views])
            for _ in range(threat.steps):
                grads = torch.stack([gradient(k, x_adv[k]) for k in views])
                x_adv = threat.ascend(x_adv, x, grads)
            if len(noise) == 1:
                return x_adv
            with torch.no_grad():
                loss_KB = torch.stack([inner_loss(k, x_adv[k]) for k in views])
            # NaN counts as the largest, as it does for argmax; of equals the first is kept
            worse_KB = ~(loss_KB <= worst_loss) & ~worst_loss.isnan()
            worst = torch.where(worse_KB[..., None, None, None], x_adv, worst)
            worst_loss = torch.where(worse_KB, loss_KB, worst_loss)
        return worst


def check_images(x: Tensor) -> None:
    """Raise InputError for no images, and for some outside [0, 1]: eps would be another length."""
    if not x.numel():
        raise InputError("there are no images to attack: the batch is empty")
    low, high = x.aminmax()
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"images range from {low:.3g} to {high:.3g}, expected [0, 1]: "
            "put the normalisation into the model, eps is counted in pixels"
        )


def attack(
    model: Network,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    loss: Literal["ce", "kl", "margin"] = "ce",
    start: Start = "uniform",
    bn: Literal["eval", "train"] = "eval",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Adversarial images of x under `threat`, like x in shape and dtype.

    model: any nn.Module or callable from images [B, C, H, W] in [0, 1] to logits [B, C]; it is
    attacked in the BatchNorm mode `bn` and left exactly as it was. y: [B] class indices.
    loss: "ce", "kl" (from the clean prediction, TRADES) or "margin" (Carlini-Wagner).
    Raises InputError for an unknown loss, start or bn and for images outside [0, 1].
    """
    check_images(x)
    inner = Inner(loss=loss, start=start, bn=bn)
    noise = torch.stack([draw_noise(start, x, generator) for _ in range(threat.restarts)])
    return attack_all([model], [inner], x, y, threat, noise[:, None])[0]
