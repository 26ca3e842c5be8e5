"""One training step of K peers: attack, forward, loss, gradient, SGD.

v_k = peer k's adversarial view, the clean view if its method attacks nothing. Total of peer k:
  alpha L_k + (1 - alpha) sum_{j in T_k} KL_batchmean(sg[p_j(v_k)] || p_k(v_k))          "cat"
  (1 - alpha) L_k + alpha / |T_k| sum_{j in T_k} KL_batchmean(sg[p_j(x)] || p_k(v_k))    "mat"
  L_k                                                                       T_k empty or "none"
With own_first "cat" has KL(p_k(v_k) || sg[p_j(v_k)]); without detach "mat" has p_j(x), no sg.
  L_k                                                                  k one of ard, rslad, iad, act
T_k are the peers who teach k, all others unless said otherwise. The latter four read the logits of
their one teacher in L_k, as constants: on x, iad also on v_k, the natural peer of act on the
teacher's own v.
Sources: Liu et al., CAT: Collaborative Adversarial Training, 2023 (arXiv 2303.14922); Liu et al.,
Mutual Adversarial Training, 2021 (arXiv 2112.05005).

All attacks come first, on the weights and running statistics of before the step. Then each peer
runs in train mode, one call per view: its own views in its objective's order, with gradient, then
what those whom it teaches read of it (first in their L_j; then cat: their v_j, by rising j; mat:
the clean images), without gradient where they detach, each view once. Every such call moves the
running statistics of the BatchNorm layers. A "teacher" computes the latter views alone, in eval
mode; nothing of it moves.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.attack import attack_copy, pgd
from tests.reference.awp import add, perturbation
from tests.reference.losses import OBJECTIVES, cat_guidance, mat_guidance, mixed
from tests.reference.squeeze import squeeze, untracked_forward

OWN_VIEWS = {
    "natural": ("clean",),
    "at": ("adv",),
    "trades": ("clean", "adv"),
    "alp": ("adv", "clean"),
    "mart": ("clean", "adv"),
    "boosted": ("adv",),
    "teacher": (),
    "st": ("clean", "adv", "col"),
    "ard": ("adv",),
    "rslad": ("adv", "clean"),
    "iad": ("adv", "clean"),
}
# settings of every method: start and BatchNorm mode of its attack, and whether the clean images are
# forwarded once more, in train mode, after the update
COMMON = ("start", "bn", "log_forward")
READS = {"ard": ["clean"], "rslad": ["clean"], "iad": ["clean", "adv"]}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step computed; tensors carry no graph, lists run over the peers.

    views: "clean" and "adv{k}" of the attacking peers, `[B, C, H, W]`; also "target{j}", the logits
    `[B, classes]` of teacher j on the clean images, where an attack climbs away from them.
    logits: (peer, view name) -> `[B, classes]`, each peer's cells in the order of its forwards.
    terms: the objective's weighted terms, before alpha. guidance: before its weight, 0 without
    teachers. Of a teacher all are empty or 0.
    grads: of the sum of all totals, before weight decay. buffers: momentum.
    """

    views: dict[str, Tensor]
    logits: dict[tuple[int, str], Tensor]
    terms: list[dict[str, Tensor]]
    guidance: list[Tensor]
    totals: list[Tensor]
    grads: list[dict[str, Tensor]]
    buffers: list[dict[str, Tensor]]


def own_views(k: int, name: str, settings: dict[str, Any]) -> list[str]:
    """Names of the views that peer k's objective reads, in the order of its forwards."""
    if name == "act":
        return ["clean" if settings.get("role") == "natural" else f"adv{k}"]
    if name == "ard" and settings.get("alpha", 1.0) < 1.0:
        return [f"adv{k}", "clean"]
    return [view if view == "clean" else f"{view}{k}" for view in OWN_VIEWS[name]]


def taught_view(k: int, name: str, settings: dict[str, Any]) -> str:
    """Name of v_k, the view on which peer k is taught."""
    return f"adv{k}" if f"adv{k}" in own_views(k, name, settings) else "clean"


def read_views(k: int, j: int, methods: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """Names of the views of its teacher j that peer k's objective reads."""
    name, settings = methods[k]
    if name == "act":
        natural = settings.get("role") == "natural"
        return [taught_view(j, *methods[j]) if natural else "clean"]
    return [view if view == "clean" else f"adv{k}" for view in READS.get(name, [])]


def asks(name: str) -> bool:
    """Whether the objective reads a teacher; it has no guidance then."""
    return name == "act" or name in READS


def col_noise(noise: Tensor, k: int) -> Tensor:
    """The start noise of peer k's second view: that of its first, of the other images in turn."""
    return noise[0, k].flip(0)


@torch.no_grad()
def sgd_update(
    params: dict[str, Tensor],
    grads: dict[str, Tensor],
    buffers: dict[str, Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> dict[str, Tensor]:
    """g = grad + wd w; buf = momentum buf + g, at first g; w -= lr buf.

    With nesterov w -= lr (g + momentum buf).
    Changes params in place and returns the new buffers. Parameters without gradient stay.
    """
    new_buffers = {}
    for name, grad in grads.items():
        g = grad + weight_decay * params[name]
        buf = momentum * buffers[name] + g if name in buffers else g
        params[name] -= lr * (g + momentum * buf if nesterov else buf)
        new_buffers[name] = buf
    return new_buffers


Computed = tuple[
    dict[tuple[int, str], Tensor],
    list[dict[str, Tensor]],
    list[Tensor],
    list[Tensor],
    list[dict[str, Tensor]],
]


def forward_and_backward(
    nets: Sequence[nn.Module],
    methods: Sequence[tuple[str, dict[str, Any]]],
    views: dict[str, Tensor],
    y: Tensor,
    alpha: float,
    collab: str,
    teachers: Sequence[Sequence[int]],
    y_mixed: Tensor | None,
    share: Tensor | None,
    own_first: bool = False,
    detach: bool = True,
) -> Computed:
    """logits, terms, guidance, totals and gradients of a step, on views that are there."""
    peers = range(len(nets))
    names = [name for name, _ in methods]

    def read_by(k: int) -> str:
        """The view of its teachers that peer k reads."""
        return "clean" if collab == "mat" else taught_view(k, *methods[k])

    z: dict[tuple[int, str], Tensor] = {}
    for k in peers:
        nets[k].train(names[k] != "teacher")
        for view in own_views(k, *methods[k]):
            tracked = not view.startswith("col")
            forward = nets[k] if tracked else partial(untracked_forward, nets[k])
            z[k, view] = forward(views[view])
        read = [view for j in peers if k in teachers[j] for view in read_views(j, k, methods)]
        read += [read_by(j) for j in peers if k in teachers[j] and not asks(names[j])]
        for view in read:
            if (k, view) not in z:
                with torch.set_grad_enabled(not detach and names[k] != "teacher"):
                    z[k, view] = nets[k](views[view])

    terms, guidance, totals = [], [], []
    for k, (name, settings) in enumerate(methods):
        if name == "teacher":
            terms.append({})
            guidance.append(y.new_zeros((), dtype=torch.float64))
            totals.append(y.new_zeros((), dtype=torch.float64))
            continue
        own = [z[k, view] for view in own_views(k, name, settings)]
        if asks(name):
            (j,) = teachers[k]
            own += [z[j, view].detach() for view in read_views(k, j, methods)]
        weights = {key: value for key, value in settings.items() if key not in COMMON}
        if y_mixed is None or share is None:
            terms.append(OBJECTIVES[name](*own, y, **weights))
        else:
            terms.append(mixed(OBJECTIVES[name], own, y, y_mixed, share, **weights))
        taught = z[k, taught_view(k, name, settings)]
        taught_by = [] if asks(name) else [z[j, read_by(k)] for j in teachers[k]]
        if collab == "mat":
            guidance.append(mat_guidance(taught, taught_by, detach))
        else:
            guidance.append(cat_guidance(taught, taught_by, own_first))
        guidance_weight = {"cat": 1.0 - alpha, "mat": alpha, "none": 0.0}[collab]
        objective_weight = 1.0 - guidance_weight if taught_by else 1.0
        totals.append(objective_weight * sum(terms[k].values()) + guidance_weight * guidance[k])

    joint = torch.stack(totals).sum()
    grads = []
    for net in nets:
        params = {n: p for n, p in net.named_parameters() if p.requires_grad}
        if not params:
            grads.append({})
            continue
        found = torch.autograd.grad(
            joint, list(params.values()), retain_graph=True, allow_unused=True
        )
        grads.append({n: g for n, g in zip(params, found, strict=True) if g is not None})
    return z, terms, guidance, totals, grads


def cat_step(
    nets: Sequence[nn.Module],
    methods: Sequence[tuple[str, dict[str, Any]]],
    x: Tensor,
    y: Tensor,
    noise: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    alpha: float,
    collab: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    buffers: Sequence[dict[str, Tensor]] | None,
    bn: str = "eval",
    y_mixed: Tensor | None = None,
    share: Tensor | None = None,
    teachers: Sequence[Sequence[int]] | None = None,
    awp: Sequence[float] | None = None,
    own_first: bool = False,
    detach: bool = True,
) -> StepResult:
    """One step in place on nets, which are left in train mode, those of teachers in eval mode.

    methods: per peer its name and settings, e.g. ("trades", {"beta": 6.0}).
    x: images in [0, 1], `[B, C, H, W]`. y: `[B]`. noise: `[R, K, B, C, H, W]`, see `attack.pgd`;
    the part of a natural peer is not read. collab: "cat", "mat" or "none".
    bn: statistics in the attack.
    buffers: those of the previous step, None at the first.
    y_mixed, share: `[B]`, of images mixed of two; share in [0, 1].
    teachers: T_k for every peer, None for all others; a "teacher" has none. own_first, detach: how
    they teach in "cat" and "mat".
    awp: gamma of each peer's weight perturbation; all that is computed is then computed at w + v.
    """
    peers = range(len(nets))
    names = [name for name, _ in methods]
    if teachers is None:
        teachers = [[j for j in peers if j != k and names[k] != "teacher"] for k in peers]
    if collab == "none":
        teachers = [of_k if asks(names[k]) else [] for k, of_k in enumerate(teachers)]

    views = {"clean": x}
    for k, (name, settings) in enumerate(methods):
        if name == "st":
            both = torch.stack([noise[0, k], col_noise(noise, k)])
            own = {
                key: value for key, value in settings.items() if key in ("start", "bn", "official")
            }
            views[f"adv{k}"], views[f"col{k}"] = squeeze(
                nets[k], x, y, eps, step_size, steps, both, **own
            )
        elif f"adv{k}" in own_views(k, name, settings):
            # MART's attack is CE from the Gaussian start
            attack = "mart" if settings.get("inner") == "ce" else name
            z_teacher = None
            if name in ("rslad", "act"):
                (j,) = teachers[k]
                teacher = attack_copy(nets[j], "eval" if names[j] == "teacher" else "train")
                with torch.no_grad():
                    views[f"target{j}"] = z_teacher = teacher(x)
            of_k = settings.get("bn", "train" if name in ("ard", "iad") else bn)
            views[f"adv{k}"] = pgd(
                nets[k],
                x,
                y,
                attack,
                eps,
                step_size,
                steps,
                noise[:, k],
                of_k,
                y_mixed,
                share,
                z_teacher,
                settings.get("start"),
            )

    if awp is not None:
        copies = [copy.deepcopy(net) for net in nets]  # whose running statistics nobody reads
        *_, grads = forward_and_backward(
            copies, methods, views, y, alpha, collab, teachers, y_mixed, share, own_first, detach
        )
        v = [perturbation(*both) for both in zip(nets, grads, awp, strict=True)]
        for net, v_k in zip(nets, v, strict=True):
            add(net, v_k, 1.0)
    z, terms, guidance, totals, grads = forward_and_backward(
        nets, methods, views, y, alpha, collab, teachers, y_mixed, share, own_first, detach
    )
    new_buffers = []
    for k, net in enumerate(nets):
        new_buffers.append(
            sgd_update(
                dict(net.named_parameters()),
                grads[k],
                buffers[k] if buffers else {},
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                nesterov=nesterov,
            )
        )

    if awp is not None:
        for net, v_k in zip(nets, v, strict=True):
            add(net, v_k, -1.0)
    for net, (_, settings) in zip(nets, methods, strict=True):
        if settings.get("log_forward"):
            with torch.no_grad():
                net(x)

    return StepResult(
        views=views,
        logits={cell: logits.detach() for cell, logits in z.items()},
        terms=[{name: term.detach() for name, term in peer.items()} for peer in terms],
        guidance=[g.detach() for g in guidance],
        totals=[t.detach() for t in totals],
        grads=grads,
        buffers=new_buffers,
    )
