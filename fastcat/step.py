"""One step of collaborative adversarial training, as Algorithm 1 of the paper has it.

Device tensors of static shape in, device tensors out; nothing here asks the host a question, but
for float16's loss scaling.
K peers, B images; z[k, v] are peer k's logits on view v.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcat.attack import attack_all, logits_of
from fastcat.batch import Batch
from fastcat.collaboration.collaboration import Collaboration
from fastcat.peer import Peer
from fastcat.plan import Cell, Table, own_view, view_name
from fastcat.precision import Precision
from fastcat.threat import ThreatModel, draw_noise


def start_noise(
    peers: Sequence[Peer], x: Tensor, threat: ThreatModel, generator: torch.Generator
) -> Tensor:
    """Start noise [restarts, A, B, C, H, W] for the A peers that are attacked."""
    starts = [peer.objective.inner.start for peer in peers if peer.objective.inner]
    draws = [[draw_noise(kind, x, generator) for kind in starts] for _ in range(threat.restarts)]
    return torch.stack([torch.stack(draw) for draw in draws]) if starts else x.new_empty(0)


def attack_views(
    peers: Sequence[Peer], batch: Batch, threat: ThreatModel, noise: Tensor, precision: Precision
) -> dict[str, Tensor]:
    """All views by name: the clean images and one adversarial view of each attacked peer."""
    views = {"clean": batch.x}
    attacked = [
        (k, peer.model, peer.objective.inner)
        for k, peer in enumerate(peers)
        if peer.objective.inner is not None
    ]
    if attacked:
        owners, networks, inners = zip(*attacked, strict=True)
        with precision.autocast():
            x_adv = attack_all(
                networks, inners, batch.x, batch.y, threat, noise, precision.attack_scale
            )
        views |= {view_name(k, "adv"): x_adv[a] for a, k in enumerate(owners)}
    return views


def forward(
    plan: Sequence[Cell], peers: Sequence[Peer], views: dict[str, Tensor], precision: Precision
) -> Table:
    """The logit table, one train-mode forward a cell, in the plan's order."""
    z: Table = {}
    for k, peer in enumerate(peers):
        # one autocast region a peer: weights are cast once, for the cells with gradient first
        with precision.autocast():
            for cell in (cell for cell in plan if cell.peer == k):
                with torch.set_grad_enabled(cell.grad):
                    z[k, cell.view] = logits_of(peer.model, views[cell.view])
    return z


def peer_losses(
    peers: Sequence[Peer], collaboration: Collaboration, z: Table, y: Tensor
) -> list[dict[str, Tensor]]:
    """Per peer every term as its objective weighted it, the guidance, and the total loss."""
    guidance = collaboration.guidance(z) if collaboration.guidance else None
    losses = []
    for k, peer in enumerate(peers):
        row = {view: z[k, view_name(k, view)] for view in peer.objective.views}
        terms = peer.objective.outer(row, y)
        total = collaboration.objective_weight * torch.stack(list(terms.values())).sum()
        if guidance is not None:
            total = total + guidance[k]
            terms["guidance"] = guidance[k]
        losses.append({**terms, "loss": total})
    return losses


def collaborative_step(
    peers: Sequence[Peer],
    plan: Sequence[Cell],
    collaboration: Collaboration,
    threat: ThreatModel,
    precision: Precision,
    batch: Batch,
    noise: Tensor,
) -> dict[str, Tensor]:
    """Attack, forward, loss, backward and update of all peers.

    Returns detached scalars by "peer/term": each loss term, the guidance, the total loss, and the
    accuracy on the view on which the peer is tested.
    """
    views = attack_views(peers, batch, threat, noise, precision)
    z = forward(plan, peers, views, precision)
    losses = peer_losses(peers, collaboration, z, batch.y)
    metrics: dict[str, Tensor] = {}
    for k, (peer, terms) in enumerate(zip(peers, losses, strict=True)):
        # other peers' logits are constants in terms["loss"], so the peers part here
        peer.descend(terms["loss"])
        hits = z[k, own_view(k, peer.objective)].argmax(1) == batch.y
        metrics |= {f"{peer.name}/{name}": term.detach() for name, term in terms.items()}
        metrics[f"{peer.name}/accuracy"] = hits.float().mean()
    return metrics
