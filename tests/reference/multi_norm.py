"""Several threat models at once: the attacks, and a step of specialists and generalists.

One step of ascent in a ball, d = x' - x:
  linf  d + s sign(g),                            clipped to [-eps, eps]
  l2    d + s g / ||g||_2,                        scaled down to length eps
  l1    d + s sign(g) / n on n coordinates,       the nearest point of l1 norm eps
then x' is clipped to [0, 1]. The n coordinates are those of the 20 largest |g| that stay in [0, 1]
when moved by s / 20, ties with the last included.

Under several threat models m = 1..M a peer (a generalist) is attacked
  avg  by each in turn: M views, the loss is the mean over them,
  max  by each in turn; each image keeps the end of largest inner loss,
  msd  by one ascent: each step tries the step of every m and each image keeps the candidate of
       largest inner loss; of all steps' iterates each image keeps that of largest inner loss. It
       starts at x, but for TRADES, whose KL has no gradient there,
  max-official, msd-official  as tests/reference/maini.py has it.
A ball of l2 may follow the code of TRADES: d clipped to [-x, 1 - x] first, then scaled to eps.
Of equals the first wins, everywhere.

Guidance of a peer k by the others, T_k all of them, KL(j | v) = KL(sg[p_j(x)] || p_k(v)):
  "mat", "mat-mp"  1/|T_k| sum_{j in T_k} KL(j | v_k), but of the generalists of "mat-mp"
    avg            1/M sum_m KL(specialist of m | v_km)
    max            KL(specialist of m_i | v_k), m_i the threat model that won image i
                   of several specialists their mean
  "cat"            sum_{j in T_k} KL(sg[p_j(v_k)] || p_k(v_k)); over several views their mean.

Sources: Maini et al., Adversarial Robustness Against the Union of Multiple Perturbation Models,
2020 (arXiv 1909.04068), Algorithm 1; Tramer and Boneh, 2019 (arXiv 1904.13000); Liu et al., Mutual
Adversarial Training, 2021 (arXiv 2112.05005), section on multiple perturbations.
Long, being one oracle that is read from top to bottom and calls nothing of fastcat.
Shapes: M threat models, R restarts, B batch, C channels, H height, W width.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference import maini
from tests.reference.attack import GAUSSIAN_SCALE, attack_copy, inner
from tests.reference.awp import add, perturbation
from tests.reference.losses import OBJECTIVES, kl, mixed
from tests.reference.squeeze import squeeze, untracked_forward
from tests.reference.step import OWN_VIEWS, StepResult, sgd_update

SPARSITY = 20


@dataclass(frozen=True, kw_only=True)
class Ball:
    """A threat model: eps and step_size in its norm, of pixels in [0, 1].

    code: "trades" for its order of box and ball, in l2.
    """

    norm: str
    eps: float
    step_size: float
    steps: int
    code: str | None = None


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A peer: its method, and the threat model that attacks it, a norm or avg, max or msd, or
    max-official, msd-official.

    bn: of the attack, "eval" or "train".
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    threat: str
    bn: str = "eval"


def project_l1(d: Tensor, eps: float) -> Tensor:
    """The nearest point of l1 norm eps at most: sign(d) max(|d| - theta, 0), theta by bisection."""
    if d.abs().sum() <= eps:
        return d
    low, high = 0.0, d.abs().max().item()
    for _ in range(80):
        theta = (low + high) / 2
        if (d.abs() - theta).clamp(min=0.0).sum() > eps:
            low = theta
        else:
            high = theta
    return d.sign() * (d.abs() - high).clamp(min=0.0)


def project_l2(d: Tensor, eps: float) -> Tensor:
    """The nearest point of l2 norm eps at most."""
    length = d.square().sum().sqrt()
    return d if length <= eps else d * eps / length


def direction_l1(x_adv: Tensor, grad: Tensor, room: float) -> Tensor:
    """Signs of the largest gradients with room, of l1 norm 1; one image [C, H, W]."""
    ahead = x_adv + room * grad.sign()
    size = grad.abs() * ((ahead >= 0.0) & (ahead <= 1.0))
    last = size.flatten().sort(descending=True).values[:SPARSITY][-1]
    chosen = (size >= last) & (size > 0.0)
    return grad.sign() * chosen / max(chosen.sum().item(), 1)


def ascend_image(ball: Ball, x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """One step of one image [C, H, W]."""
    if ball.norm == "linf":
        d = (x_adv + ball.step_size * grad.sign() - x).clamp(-ball.eps, ball.eps)
    elif ball.norm == "l2":
        length = grad.square().sum().sqrt()
        direction = grad / length if length > 0 else grad
        moved = x_adv + ball.step_size * direction
        if ball.code == "trades":
            return x + project_l2(moved.clamp(0.0, 1.0) - x, ball.eps)
        d = project_l2(moved - x, ball.eps)
    else:
        direction = direction_l1(x_adv, grad, ball.step_size / SPARSITY)
        d = project_l1(x_adv + ball.step_size * direction - x, ball.eps)
    return (x + d).clamp(0.0, 1.0)


def ascend(ball: Ball, x_adv: Tensor, x: Tensor, grad: Tensor) -> Tensor:
    """One step of every image; all `[B, C, H, W]`."""
    images = zip(x_adv, x, grad, strict=True)
    return torch.stack([ascend_image(ball, *image) for image in images])


def start(x: Tensor, kind: str, ball: Ball, noise: Tensor) -> Tensor:
    """The first iterate; noise: of the unit ball for "uniform", standard normal for "gaussian"."""
    if kind == "uniform":
        return (x + ball.eps * noise).clamp(0.0, 1.0)
    return x + GAUSSIAN_SCALE * noise if kind == "gaussian" else x


@dataclass(frozen=True, kw_only=True)
class Climb:
    """What an attack climbs: the inner objective of a method on images x `[B, C, H, W]`.

    kind: of the start, "uniform", "gaussian" or "zero". y_mixed, share: `[B]` or None.
    """

    net: nn.Module
    x: Tensor
    y: Tensor
    method: str
    kind: str
    bn: str = "eval"
    y_mixed: Tensor | None = None
    share: Tensor | None = None

    @cached_property
    def twin(self) -> nn.Module:
        return attack_copy(self.net, self.bn)

    @cached_property
    def z_clean(self) -> Tensor | None:
        """None where it is not read."""
        return self.twin(self.x).detach() if self.method == "trades" else None

    def loss(self, x_adv: Tensor) -> Tensor:
        """Per image `[B]`."""
        z_adv = self.twin(x_adv)
        return inner(self.method, z_adv, self.z_clean, self.y, self.y_mixed, self.share)

    def grad(self, x_adv: Tensor) -> Tensor:
        x_adv = x_adv.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(self.loss(x_adv).sum(), x_adv)
        return grad

    def height(self, x_adv: Tensor) -> Tensor:
        """The loss `[B]` without a graph."""
        with torch.no_grad():
            return self.loss(x_adv)

    def misjudged(self, x_adv: Tensor) -> Tensor:
        """Which images `[B]` get another class."""
        with torch.no_grad():
            return self.twin(x_adv).argmax(dim=1) != self.y

    def worst(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of each image the point of largest loss, its number `[B]`, and its loss."""
        losses = torch.stack([self.height(point) for point in points])
        return largest(points, losses)


def largest(points: Sequence[Tensor], losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image the point of largest loss; losses `[points, B]`, the first among equals."""
    winner, every = losses.argmax(dim=0), torch.arange(losses.shape[1])
    return torch.stack(list(points))[winner, every], winner, losses[winner, every]


def pgd(climb: Climb, ball: Ball, noise: Tensor) -> Tensor:
    """The end of the worst restart `[B, C, H, W]`; noise `[R, B, C, H, W]`."""
    ends = []
    for noise_r in noise:
        x_adv = start(climb.x, climb.kind, ball, noise_r)
        for _ in range(ball.steps):
            x_adv = ascend(ball, x_adv, climb.x, climb.grad(x_adv))
        ends.append(x_adv)
    return climb.worst(ends)[0]


def attack_max(climb: Climb, balls: Sequence[Ball], noise: Tensor) -> tuple[Tensor, Tensor]:
    """The worst end of each image, and the number of its ball `[B]`; noise `[M, R, B, C, H, W]`."""
    return climb.worst([pgd(climb, *one) for one in zip(balls, noise, strict=True)])[:2]


def attack_msd(climb: Climb, balls: Sequence[Ball], noise: Tensor) -> Tensor:
    """The worst iterate of each image, in as many steps as the longest ball has.

    noise: standard normal `[B, C, H, W]`, which is read for TRADES alone.
    """
    x_adv = start(climb.x, "gaussian" if climb.method == "trades" else "zero", balls[0], noise)
    iterates, losses = [], []
    for _ in range(max(ball.steps for ball in balls)):
        grad = climb.grad(x_adv)
        x_adv, _, loss = climb.worst([ascend(ball, x_adv, climb.x, grad) for ball in balls])
        iterates.append(x_adv)
        losses.append(loss)
    return largest(iterates, torch.stack(losses))[0]


@dataclass(frozen=True, kw_only=True)
class Views:
    """A peer's own views: adversarial ones by name, "adv" where there is one, else "l2.adv", ...

    winner: `[B]` the number of the ball, under max.
    """

    adv: dict[str, Tensor]
    col: Tensor | None = None
    winner: Tensor | None = None


def attack(learner: Learner, climb: Climb, balls: Sequence[Ball], noise: Tensor) -> Views:
    """noise: `[M, R, B, C, H, W]`, one for each ball under avg and max, else one; st: adv, col;
    max-official: two.
    """
    if learner.threat == "avg":
        pairs = zip(balls, noise, strict=True)
        return Views(adv={f"{ball.norm}.adv": pgd(climb, ball, own) for ball, own in pairs})
    if learner.threat == "max":
        view, winner = attack_max(climb, balls, noise)
        return Views(adv={"adv": view}, winner=winner)
    if learner.threat == "msd":
        return Views(adv={"adv": attack_msd(climb, balls, noise[0, 0])})
    if learner.threat == "max-official":
        view, winner = maini.attack_max(
            climb.x, climb.grad, climb.height, climb.misjudged, balls, noise[:, 0]
        )
        return Views(adv={"adv": view}, winner=winner)
    if learner.threat == "msd-official":
        view = maini.attack_msd(climb.x, climb.grad, climb.height, balls, noise[:, 0])
        return Views(adv={"adv": view})
    (ball,) = (ball for ball in balls if ball.norm == learner.threat)
    if learner.method == "st":
        adv, col = squeeze(
            climb.net,
            climb.x,
            climb.y,
            ball.eps,
            ball.step_size,
            ball.steps,
            noise[:, 0],
            move=partial(ascend, ball),
        )
        return Views(adv={"adv": adv}, col=col)
    return Views(adv={"adv": pgd(climb, ball, noise[0])})


START = {"at": "uniform", "alp": "uniform"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a step is about; alpha: own weight in "cat", guidance's in "mat" and "mat-mp"."""

    learners: Sequence[Learner]
    balls: Sequence[Ball]
    x: Tensor
    y: Tensor
    collab: str
    alpha: float
    y_mixed: Tensor | None = None
    share: Tensor | None = None

    def climb(self, net: nn.Module, learner: Learner) -> Climb:
        # MART's attack is CE from the Gaussian start
        ce = learner.settings.get("inner") == "ce"
        return Climb(
            net=net,
            x=self.x,
            y=self.y,
            method="mart" if ce else learner.method,
            kind=START.get(learner.method, "gaussian"),
            bn=learner.bn,
            y_mixed=self.y_mixed,
            share=self.share,
        )

    def specialists(self, norm: str) -> list[int]:
        return [k for k, learner in enumerate(self.learners) if learner.threat == norm]

    def others(self, k: int) -> list[int]:
        return [j for j in range(len(self.learners)) if j != k and self.collab != "none"]


def own_views(task: Task, views: Sequence[Views], k: int) -> list[str]:
    """What peer k's objective reads, in the order of its forwards."""
    of = {"clean": ["clean"], "adv": [*views[k].adv], "col": ["col"]}
    return [name for view in OWN_VIEWS[task.learners[k].method] for name in of[view]]


Logits = dict[tuple[int, int, str], Tensor]


def forward(task: Task, nets: Sequence[nn.Module], views: Sequence[Views]) -> Logits:
    """z[k, j, view]: of peer k on that view of peer j, with gradient where j is k.

    Own views come first, in the objective's order, then what k's pupils read of it, once each.
    """
    z: Logits = {}
    for k, net in enumerate(nets):
        net.train()
        for name in own_views(task, views, k):
            if name == "clean":
                z[k, k, name] = net(task.x)
            elif name == "col":
                z[k, k, name] = untracked_forward(net, views[k].col)
            else:
                z[k, k, name] = net(views[k].adv[name])
        with torch.no_grad():
            if task.collab == "cat":
                for j in task.others(k):
                    for name, view in views[j].adv.items():
                        z[k, j, name] = net(view)
            elif task.others(k) and (k, k, "clean") not in z:
                z[k, k, "clean"] = net(task.x)
    return z


def objective_terms(task: Task, z: Logits, views: Sequence[Views], k: int) -> dict[str, Tensor]:
    """The weighted terms of peer k's objective, each the mean over its adversarial views."""
    learner = task.learners[k]
    means: dict[str, Tensor] = {}
    for adv in views[k].adv:
        read = {"clean": "clean", "adv": adv, "col": "col"}
        own = [z[k, k, read[view]] for view in OWN_VIEWS[learner.method]]
        of = OBJECTIVES[learner.method]
        if task.y_mixed is None or task.share is None:
            terms = of(*own, task.y, **learner.settings)
        else:
            terms = mixed(of, own, task.y, task.y_mixed, task.share, **learner.settings)
        for name, term in terms.items():
            means[name] = means.get(name, 0.0) + term / len(views[k].adv)
    return means


def guidance(task: Task, z: Logits, views: Sequence[Views], k: int) -> Tensor:
    """Before its weight; 0 where nobody teaches."""
    size, others, threat = len(task.y), task.others(k), task.learners[k].threat
    total = z[k, k, next(iter(views[k].adv))].new_zeros(())
    if not others:
        return total
    for number, adv in enumerate(views[k].adv):
        student = z[k, k, adv]
        if task.collab == "cat":
            lessons = [kl(z[j, k, adv].detach(), student).sum() for j in others]
            of_view = torch.stack(lessons).sum() / size
        else:
            teachers = [others] * size
            if task.collab == "mat-mp" and threat == "avg":
                teachers = [task.specialists(task.balls[number].norm)] * size
            elif task.collab == "mat-mp" and threat in ("max", "max-official"):
                teachers = [task.specialists(task.balls[m].norm) for m in views[k].winner.tolist()]
            lesson = {j: kl(z[j, j, "clean"].detach(), student) for j in others}
            of_image = [
                torch.stack([lesson[j][i] for j in of_one]).mean()
                for i, of_one in enumerate(teachers)
            ]
            of_view = torch.stack(of_image).sum() / size
        total = total + of_view / len(views[k].adv)
    return total


def compute(
    task: Task, nets: Sequence[nn.Module], views: Sequence[Views]
) -> tuple[Logits, list[dict[str, Tensor]], list[Tensor], list[Tensor], list[dict[str, Tensor]]]:
    """Logits, terms, guidance, totals and gradients of a step, on views that are there."""
    z = forward(task, nets, views)
    peers = range(len(nets))
    terms = [objective_terms(task, z, views, k) for k in peers]
    guided = [guidance(task, z, views, k) for k in peers]
    weight = {"cat": 1.0 - task.alpha, "none": 0.0}.get(task.collab, task.alpha)
    totals = [
        (1.0 - weight if task.others(k) else 1.0) * sum(terms[k].values()) + weight * guided[k]
        for k in peers
    ]
    joint = torch.stack(totals).sum()
    grads = []
    for net in nets:
        found = torch.autograd.grad(joint, list(net.parameters()), retain_graph=True)
        grads.append(dict(zip(dict(net.named_parameters()), found, strict=True)))
    return z, terms, guided, totals, grads


def multi_norm_step(
    task: Task,
    nets: Sequence[nn.Module],
    noise: Sequence[Tensor],
    sgd: dict[str, Any],
    buffers: Sequence[dict[str, Tensor]] | None,
    awp: Sequence[float] | None = None,
) -> tuple[StepResult, list[Views]]:
    """One step in place on nets, which are left in train mode, and every peer's views.

    noise: of each peer, as `attack` takes it. sgd: as `sgd_update` takes it. buffers: those of the
    previous step, None at the first. awp: gamma of each peer's weight perturbation.
    In the result views are named "adv{k}", under avg "l2.adv{k}", and logits by the peer and
    the name of its own view.
    """
    views = [
        attack(learner, task.climb(net, learner), task.balls, own)
        for net, learner, own in zip(nets, task.learners, noise, strict=True)
    ]
    if awp is not None:
        copies = [copy.deepcopy(net) for net in nets]  # whose running statistics nobody reads
        *_, grads = compute(task, copies, views)
        v = [perturbation(*both) for both in zip(nets, grads, awp, strict=True)]
        for net, v_k in zip(nets, v, strict=True):
            add(net, v_k, 1.0)
    z, terms, guided, totals, grads = compute(task, nets, views)
    new_buffers = [
        sgd_update(dict(net.named_parameters()), grads[k], buffers[k] if buffers else {}, **sgd)
        for k, net in enumerate(nets)
    ]
    if awp is not None:
        for net, v_k in zip(nets, v, strict=True):
            add(net, v_k, -1.0)

    named = {"clean": task.x}
    for k, own in enumerate(views):
        for name, view in own.adv.items():
            named[f"{name}{k}"] = view
        if own.col is not None:
            named[f"col{k}"] = own.col
    result = StepResult(
        views=named,
        logits={(k, name): logits.detach() for (k, j, name), logits in z.items() if j == k},
        terms=[{name: term.detach() for name, term in peer.items()} for peer in terms],
        guidance=[g.detach() for g in guided],
        totals=[t.detach() for t in totals],
        grads=grads,
        buffers=new_buffers,
    )
    return result, views
