"""PGD on all networks at once (Madry et al. 2018): every adversarial view advances together.

An attack reads a network and leaves no trace in it: no gradients in parameters, no BatchNorm
statistics, modes restored, also when it is interrupted.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from fastcat.attacks.frozen import Frozen
from fastcat.attacks.modes import Network, NormMode, attack_mode
from fastcat.attacks.threat import Start, ThreatModel, Threats, check_threat
from fastcat.attacks.training import PeerAttack, TrainingAttack, Work
from fastcat.batch import by_share
from fastcat.errors import InputError, nearest
from fastcat.guard import NO_ANSWER, CheckedNetwork, answers, as_batch
from fastcat.kernels import losses
from fastcat.kernels.attack_logit_grad import KINDS, attack_logit_grad

# in a network's place: its module is their model, and they read images in a dtype of their own
StandIn = Frozen | CheckedNetwork
# a name of ATTACK_LOSSES, or a formula of one's own from logits [B, C] and labels [B] to [B]
AttackLoss = Literal["ce", "kl", "margin", "dlr", "boosted_ce"] | Callable[[Tensor, Tensor], Tensor]

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
class PGD(TrainingAttack):
    """Projected gradient ascent on a loss; the view is its last iterate.

    loss: what is climbed, a name of `ATTACK_LOSSES`, or a formula from logits [B, C] and labels [B]
        to a loss [B] of each image
    start: "zero" (the image), "uniform" in the ball, "unclipped" (uniform, may leave [0, 1]),
        "gaussian" (near the image)
    bn: "eval" normalises by the running statistics, "train" by those of the batch, "moving" too and
        moves the running ones with every forward
    last: whether "moving" counts a forward of the last iterate
    target: whose prediction on the clean images "kl" moves away from, "own" or "teacher"
    steps: number of gradients. None: the threat model's
    step: step size as a multiple of eps. None: the threat model's
    reach: radius of the ball as a multiple of eps
    start_share: fraction of that ball in which a uniform start lies
    """

    loss: AttackLoss = "ce"
    start: Start = "uniform"
    bn: NormMode = "eval"
    last: bool = False
    target: Literal["own", "teacher"] = "own"
    steps: int | None = None
    step: float | None = None
    reach: float = 1.0
    start_share: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for a name that is not known: a slip would be a weaker attack."""
        known = {
            "loss": ATTACK_LOSSES,
            "start": get_args(Start),
            "bn": get_args(NormMode),
            "target": ("own", "teacher"),
        }
        for field, names in known.items():
            name = getattr(self, field)
            if name not in [*names] and not (field == "loss" and callable(name)):
                raise InputError(f"unknown attack {field} {name!r}: {nearest(name, names)}")
        if hasattr(self.loss, "formula"):
            name = getattr(self.loss, "__name__", "")
            raise InputError(
                f"the attack loss is the term {name}, expected its formula: type {name}.formula"
            )
        if self.target == "teacher" and self.loss != "kl":
            raise InputError(f"the attack loss {self.loss} has no teacher: expected kl")
        if (self.loss, self.start, self.target) == ("kl", "zero", "own"):
            raise InputError(
                "the KL from the clean prediction has no gradient at the image itself: "
                "start at gaussian or uniform noise"
            )

    def check_classes(self, classes: int) -> None:
        """Raise InputError where there are too few classes for the loss that is climbed."""
        if self.loss == "dlr" and classes < 3:
            raise InputError(
                f"the attack loss dlr reads the third largest logit, but there are {classes} "
                "classes: expected margin or ce"
            )

    def explored(self, threats: Threats) -> Threats:
        return replace(threats, models=tuple(map(self._explored, threats.models)))

    def _explored(self, threat: ThreatModel) -> ThreatModel:
        return replace(
            threat,
            eps=self.reach * threat.eps,
            step_size=threat.step if self.step is None else self.step * threat.eps,
            steps=self.steps or threat.steps,
        )

    def find(self, task: PeerAttack, work: Work) -> dict[str, Tensor]:
        return self.find_all([task], work)

    @classmethod
    def family(cls) -> type[TrainingAttack]:
        return PGD

    @classmethod
    def find_all(cls, tasks: Sequence[PeerAttack], work: Work) -> dict[str, Tensor]:
        """Attacks under the same threat model advance together."""
        together: dict[ThreatModel, list[tuple[PeerAttack, int]]] = {}
        for task in tasks:
            for m, threat in enumerate(task.threats.models):
                together.setdefault(threat, []).append((task, m))
        ends: dict[tuple[PeerAttack, int], Tensor] = {}
        for threat, group in together.items():
            x_adv = attack_all(
                [work.networks[task] for task, _ in group],
                [task.attack for task, _ in group],  # type: ignore[misc]
                work.batch.x,
                work.batch.y,
                threat,
                torch.stack([work.noise[:, task.first + m] for task, m in group], 1),
                work.grad_scale,
                work.batch.y_mixed,
                work.batch.share,
                [work.targets.get(task.teacher) for task, _ in group],
            )
            ends.update(zip(group, x_adv, strict=True))
        found: dict[str, Tensor] = {}
        for task in tasks:
            of_task = [ends[task, m] for m in range(len(task.threats.models))]
            found |= task.attack.choose(task, work, of_task)  # type: ignore[attr-defined]
        return found

    def choose(self, task: PeerAttack, work: Work, ends: Sequence[Tensor]) -> dict[str, Tensor]:
        """The views from the ends [B, C, H, W] under each threat model."""
        return {task.views[0]: ends[0]}


def at_least_float32(z: Tensor) -> Tensor:
    """Losses are never computed in less."""
    return z if z.dtype == torch.float64 else z.float()


def room_for(views: int, x: Tensor) -> Tensor:
    """Uninitialised [views, *x.shape], each laid out like x."""
    one = torch.empty_like(x)
    shape, strides = (views, *x.shape), (one.numel(), *one.stride())
    return torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """As torch.stack has it; a single one is not copied."""
    return torch.stack([*tensors]) if len(tensors) > 1 else tensors[0][None]


def stack_images(images: Sequence[Tensor]) -> Tensor:
    """Images [K, B, C, H, W], channels-last within each, as networks give gradients."""
    return torch.stack([one.permute(0, 2, 3, 1) for one in images]).permute(0, 1, 4, 2, 3)


class Views:
    """The adversarial images of K networks during an attack, which each step moves in place.

    x_adv: [K, B, C, H, W] in the images' dtype, in which no step is lost
    low: a copy in the dtype of frozen networks that compute in less, which they read
    """

    def __init__(self, networks: Sequence[Network], x: Tensor) -> None:
        self.networks = networks
        self.x_adv = room_for(len(networks), x)
        dtypes = {network.dtype for network in networks if isinstance(network, StandIn)} - {x.dtype}
        self.low = torch.empty_like(self.x_adv, dtype=dtypes.pop()) if dtypes else None

    def begin(self, starts: Sequence[Tensor]) -> None:
        for k, start in enumerate(starts):
            self.x_adv[k].copy_(start)
        if self.low is not None:
            self.low.copy_(self.x_adv)

    def seen_by(self, k: int) -> Tensor:
        """The images [B, C, H, W] that network k reads."""

        reads_low = self.low is not None and isinstance(self.networks[k], StandIn)
        return self.low[k] if reads_low else self.x_adv[k]  # type: ignore[index]

    def gradients(self, logit_grad: Callable[[Tensor], Tensor]) -> Tensor:
        """[K, B, C, H, W], by a function from logits [K, B, classes] to their gradient."""
        leaves = [self.seen_by(k).detach().requires_grad_() for k in range(len(self.networks))]
        with torch.enable_grad():
            z = [logits(network, leaf) for network, leaf in zip(self.networks, leaves, strict=True)]
        dz = logit_grad(stacked([z_k.detach() for z_k in z]))
        grads = list(map(gradient, self.networks, z, leaves, dz))
        if len(grads) == 1:
            return grads[0][None]
        return stack_images(grads)


class ClimbedLoss:
    """The losses that attacks on K networks climb on one batch, and their gradients in the logits.

    networks: those attacked, in the modes of their attacks
    inners: settings of their attacks
    x, y: clean images and labels
    grad_scale: factor of the loss, which changes no sign but keeps float16 gradients from
        underflowing
    y_mixed, share: of a `Batch`
    targets: by network the clean logits [B, classes] that "kl" moves away from. None: its own
    """

    def __init__(
        self,
        networks: Sequence[Network],
        inners: Sequence[PGD],
        x: Tensor,
        y: Tensor,
        grad_scale: float = 1.0,
        y_mixed: Tensor | None = None,
        share: Tensor | None = None,
        targets: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Belongs where the networks are in the modes of their attacks."""
        self.inners, self.y, self.y_mixed, self.share = inners, y, y_mixed, share
        self.grad_scale = grad_scale
        self.losses = [
            ATTACK_LOSSES[inner.loss] if isinstance(inner.loss, str) else inner.loss
            for inner in inners
        ]
        self.formulas = [k for k, inner in enumerate(inners) if not isinstance(inner.loss, str)]
        # the kernel climbs nothing else, and of formulas it computes what is not used
        self.kinds = [
            KINDS[inner.loss if isinstance(inner.loss, str) else "ce"] for inner in inners
        ]
        # clean logits are constant during the attack, so computed once and not once a step
        self.clean: dict[int, Tensor] = {}
        for k, inner in enumerate(inners):
            if inner.loss == "kl":
                given = None if targets is None else targets[k]
                self.clean[k] = constant_logits(networks[k], x) if given is None else given
        # where another loss is climbed, it is not read
        padded = [
            self.clean.get(k, next(iter(self.clean.values())))
            for k in range(len(inners))
            if self.clean
        ]
        self.target = stacked(padded) if padded else None

    def logit_grad(self, z: Tensor) -> Tensor:
        """Gradients of the climbed losses like z [K, B, classes]."""
        for inner in self.inners:
            inner.check_classes(z.shape[2])

        def by(labels: Tensor) -> Tensor:
            target = z if self.target is None else self.target
            grad = attack_logit_grad(z, labels, target, self.kinds, self.grad_scale)
            for k in self.formulas:
                grad[k] = self.formula_grad(k, z[k], labels)
            return grad

        if self.y_mixed is None or self.share is None:
            return by(self.y)
        return by_share(by(self.y), by(self.y_mixed), self.share[:, None])

    def formula_grad(self, k: int, z: Tensor, labels: Tensor) -> Tensor:
        """The gradient like z [B, classes] of network k's own formula, by autograd."""
        leaf = at_least_float32(z.detach()).requires_grad_()
        with torch.enable_grad():
            values = self.losses[k](leaf, labels)
        if not isinstance(values, Tensor) or values.shape != labels.shape:
            raise InputError(
                f"the attack loss gives {tuple(getattr(values, 'shape', ()))} values for "
                f"{len(labels)} images, expected one for each: leave mean() and sum() out"
            )
        return torch.autograd.grad(self.grad_scale * values.sum(), leaf)[0].to(z.dtype)

    def loss(self, k: int, z: Tensor) -> Tensor:
        """The climbed loss [B] of network k's logits z [B, classes], without grad_scale.

        NaN where these are no answer, as some losses of them are and others are not.
        """
        z, loss = at_least_float32(z), self.losses[k]
        if k in self.clean:
            values = loss(z, at_least_float32(self.clean[k]))
        elif self.y_mixed is None or self.share is None:
            values = loss(z, self.y)
        else:
            values = by_share(loss(z, self.y), loss(z, self.y_mixed), self.share)
        return values.masked_fill(answers(z) == NO_ANSWER, torch.nan)


def logits(network: Network, images: Tensor) -> Tensor:
    """Logits of a network in its present mode, differentiable; images may have any float type.

    The network gets a copy, as it may write to its input; of a frozen one it is known whether it
    does.
    """
    dtype = network.dtype if isinstance(network, StandIn) else images.dtype
    return network(images.to(dtype, copy=not isinstance(network, Frozen) or network.in_place))


@torch.no_grad()
def constant_logits(network: Network, images: Tensor) -> Tensor:
    """The `logits` of a network without gradient."""
    return logits(network, images)


def gradient(network: Network, z: Tensor, images: Tensor, dz: Tensor) -> Tensor:
    """The gradient in the images, from that of the logits z. Raises InputError where none is."""
    grad = None
    if z.requires_grad:
        with network.explained(images) if isinstance(network, CheckedNetwork) else nullcontext():
            (grad,) = torch.autograd.grad(z, images, dz.to(z.dtype), allow_unused=True)
    if grad is None:
        raise InputError(
            "the network's logits have no gradient in the images, which an attack follows: "
            "expected a forward without no_grad, detach or numpy"
        )
    if isinstance(network, CheckedNetwork):
        network.look_at(grad)
    return grad


def module_of(network: Network) -> Network:
    """The module whose train or eval mode a network has."""
    return network.model if isinstance(network, StandIn) else network


@contextmanager
def attacked(networks: Sequence[Network], inners: Sequence[PGD]) -> Iterator[None]:
    """Within it the networks are in the modes of their attacks."""
    with ExitStack() as modes:
        for network, inner in zip(networks, inners, strict=True):
            modes.enter_context(attack_mode(module_of(network), inner.bn))
        yield


def worse(loss: Tensor, than: Tensor) -> Tensor:
    """Where `loss` is larger than `than`; NaN is larger than all else."""
    return ~(loss <= than) & ~than.isnan()


def attack_all(
    networks: Sequence[Network],
    inners: Sequence[PGD],
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    noise: Tensor,
    grad_scale: float = 1.0,
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
    targets: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Adversarial images [K, B, C, H, W], one set for each of K networks, which advance together.

    networks, inners: K networks and the settings of their attacks
    x, y: clean images and labels
    threat: the threat model of all
    noise: [restarts, K, B, C, H, W] from `ThreatModel.draw_noise`; of several restarts each image
        keeps the end of largest loss
    grad_scale, y_mixed, share, targets: as in `ClimbedLoss`
    """
    x = x.detach()
    views = Views(networks, x)
    with attacked(networks, inners):
        climbed = ClimbedLoss(networks, inners, x, y, grad_scale, y_mixed, share, targets)
        worst = x.expand(len(networks), *x.shape)
        worst_loss = torch.full((len(networks), len(x)), -torch.inf, device=x.device)
        for noise_KB in noise:
            views.begin(
                [
                    threat.start(x, inner.start, inner.start_share * noise_KB[k])
                    for k, inner in enumerate(inners)
                ]
            )
            for _ in range(threat.steps):
                threat.ascend(views.x_adv, x, views.gradients(climbed.logit_grad), views.low)
            if len(noise) == 1:
                for k, inner in enumerate(inners):
                    if inner.last and inner.bn == "moving":
                        constant_logits(networks[k], views.seen_by(k))
                return views.x_adv
            with torch.no_grad():
                loss_KB = torch.stack(
                    [
                        climbed.loss(k, constant_logits(network, views.seen_by(k)))
                        for k, network in enumerate(networks)
                    ]
                )
            worse_KB = worse(loss_KB, worst_loss)
            worst = torch.where(worse_KB[..., None, None, None], views.x_adv, worst)
            worst_loss = torch.where(worse_KB, loss_KB, worst_loss)
        return worst


@torch.inference_mode(False)
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

    model: any nn.Module or callable from images [B, C, H, W] in [0, 1] to logits [B, classes]. It
        is left as it was. Where all its weights have another float type, it gets the images in that
    x: images, float32 or float64
    y: class indices [B] of any integer type, as a tensor, an array or a list
    threat: norm, radius, step size, steps and restarts
    loss: "ce", "kl" (from the clean prediction, TRADES), "margin" (Carlini-Wagner), "dlr" (Croce &
        Hein, from three classes on), "boosted_ce" (MART), or a function from logits [B, classes]
        and labels [B] to a loss [B] of each image
    start: "zero" (the image), "uniform" in the ball, "unclipped" (uniform, may leave [0, 1]),
        "gaussian"
    bn: BatchNorm normalises by its running statistics ("eval") or by those of the batch ("train")
    generator: of the start noise, on the images' device. None: torch's own

    It works under no_grad and inference_mode too. Where logits become NaN the image stays as it is,
    and where a gradient is NaN the pixel does; a RuntimeWarning tells how many images that
    concerns. Raises InputError for an unknown loss, start or bn, for images outside [0, 1], for
    labels that are not one of the classes for each image, and for a network that gives no logits,
    gives them without gradient, or raises an exception itself.
    """
    x, y = as_batch(x, y)
    inner = PGD(loss=loss, start=start, bn=bn)
    if inner.bn == "moving":
        raise InputError("bn is 'moving', which would change the model: expected eval or train")
    check_threat(threat)
    network = CheckedNetwork(model, x, y)
    noise = torch.stack([threat.draw_noise(start, x, generator) for _ in range(threat.restarts)])
    x_adv = attack_all([network], [inner], x, y, threat, noise[:, None])[0]
    if network.without_gradient:
        warnings.warn(
            f"gradients have NaN for {int(network.without_gradient)} of {len(x)} images, where the "
            "attack cannot follow them: little is known of their robustness",
            RuntimeWarning,
            stacklevel=2,
        )
    return x_adv
