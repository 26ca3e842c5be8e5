"""One training step of K peers: attack, forward, loss, gradient, SGD.

v_k = peer k's adversarial view, the clean view if its method attacks nothing. Total of peer k:
  alpha L_k + (1 - alpha) sum_{j in T_k} KL_batchmean(sg[p_j(v_k)] || p_k(v_k))          "cat"
  (1 - alpha) L_k + alpha / |T_k| sum_{j in T_k} KL_batchmean(sg[p_j(x)] || p_k(v_k))    "mat"
  L_k                                                                       T_k empty or "none"
T_k are the peers who teach k, all others unless said otherwise.
Sources: Liu et al., CAT: Collaborative Adversarial Training, 2023 (arXiv 2303.14922); Liu et al.,
Mutual Adversarial Training, 2021 (arXiv 2112.05005).

All attacks come first, on the weights and running statistics of before the step. Then each peer
runs in train mode, one call per view: its own views in its objective's order, with gradient, then
what those whom it teaches read of it (cat: their v_j, by rising j; mat: the clean images), without
gradient, each view once. Every such call moves the running statistics of the BatchNorm layers. A
"teacher" computes the latter views alone, in eval mode, and nothing of it moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.attack import pgd
from tests.reference.losses import OBJECTIVES, cat_guidance, mat_guidance, mixed

OWN_VIEWS = {
    "natural": ("clean",),
    "at": ("adv",),
    "trades": ("clean", "adv"),
    "alp": ("adv", "clean"),
    "mart": ("clean", "adv"),
    "boosted": ("adv",),
    "teacher": (),
}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step computed; tensors carry no graph, lists run over the peers.

    views: "clean" and "adv{k}" of the attacking peers, `[B, C, H, W]`.
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


def own_views(k: int, name: str) -> list[str]:
    """Names of the views that peer k's objective reads, in the order of its forwards."""
    return [f"adv{k}" if view == "adv" else view for view in OWN_VIEWS[name]]


def taught_view(k: int, name: str) -> str:
    """Name of v_k, the view on which peer k is taught."""
    return f"adv{k}" if "adv" in OWN_VIEWS[name] else "clean"


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
) -> StepResult:
    """One step in place on nets, which are left in train mode, those of teachers in eval mode.

    methods: per peer its name and settings, e.g. ("trades", {"beta": 6.0}).
    x: images in [0, 1], `[B, C, H, W]`. y: `[B]`. noise: `[R, K, B, C, H, W]`, see `attack.pgd`;
    the part of a natural peer is not read. collab: "cat", "mat" or "none".
    bn: statistics in the attack.
    buffers: those of the previous step, None at the first.
    y_mixed, share: `[B]`, of images mixed of two; share in [0, 1].
    teachers: T_k for every peer, None for all others; a "teacher" has none.
    """
    peers = range(len(nets))
    names = [name for name, _ in methods]
    if teachers is None:
        teachers = [[j for j in peers if j != k and names[k] != "teacher"] for k in peers]
    if collab == "none":
        teachers = [[] for _ in peers]

    def read_by(k: int) -> str:
        """The view of its teachers that peer k reads."""
        return "clean" if collab == "mat" else taught_view(k, names[k])

    views = {"clean": x}
    for k, (name, settings) in enumerate(methods):
        if "adv" in OWN_VIEWS[name]:
            # MART's attack is CE from the Gaussian start
            attack = "mart" if settings.get("inner") == "ce" else name
            views[f"adv{k}"] = pgd(
                nets[k], x, y, attack, eps, step_size, steps, noise[:, k], bn, y_mixed, share
            )

    z: dict[tuple[int, str], Tensor] = {}
    for k in peers:
        nets[k].train(names[k] != "teacher")
        for view in own_views(k, names[k]):
            z[k, view] = nets[k](views[view])
        for j in peers:
            view = read_by(j)
            if k in teachers[j] and (k, view) not in z:
                with torch.no_grad():
                    z[k, view] = nets[k](views[view])

    terms, guidance, totals = [], [], []
    for k, (name, settings) in enumerate(methods):
        if name == "teacher":
            terms.append({})
            guidance.append(x.new_zeros(()))
            totals.append(x.new_zeros(()))
            continue
        own = [z[k, view] for view in own_views(k, name)]
        if y_mixed is None or share is None:
            terms.append(OBJECTIVES[name](*own, y, **settings))
        else:
            terms.append(mixed(OBJECTIVES[name], own, y, y_mixed, share, **settings))
        taught = z[k, taught_view(k, name)]
        taught_by = [z[j, read_by(k)] for j in teachers[k]]
        guidance.append({"mat": mat_guidance}.get(collab, cat_guidance)(taught, taught_by))
        guidance_weight = {"cat": 1.0 - alpha, "mat": alpha, "none": 0.0}[collab]
        objective_weight = 1.0 - guidance_weight if taught_by else 1.0
        totals.append(objective_weight * sum(terms[k].values()) + guidance_weight * guidance[k])

    joint = torch.stack(totals).sum()
    grads, new_buffers = [], []
    for net in nets:
        params = {n: p for n, p in net.named_parameters() if p.requires_grad}
        if not params:
            grads.append({})
            continue
        found = torch.autograd.grad(
            joint, list(params.values()), retain_graph=True, allow_unused=True
        )
        grads.append({n: g for n, g in zip(params, found, strict=True) if g is not None})
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

    return StepResult(
        views=views,
        logits={cell: logits.detach() for cell, logits in z.items()},
        terms=[{name: term.detach() for name, term in peer.items()} for peer in terms],
        guidance=[g.detach() for g in guidance],
        totals=[t.detach() for t in totals],
        grads=grads,
        buffers=new_buffers,
    )
