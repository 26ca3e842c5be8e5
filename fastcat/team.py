"""All peers with what binds them: the plan, the losses of the table, the threat, the precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcat.attack import Network
from fastcat.collaboration import make_collaboration
from fastcat.errors import InputError
from fastcat.frozen import CannotFreeze, Frozen
from fastcat.lanes import Lanes
from fastcat.peer import Peer
from fastcat.plan import Cell, make_plan, own_view
from fastcat.precision import Precision
from fastcat.squeeze import Squeeze
from fastcat.table_loss import TableLoss
from fastcat.threat import ThreatModel


@dataclass
class Team:
    """remarks: a line for each thing that could not be had, and why."""

    peers: Sequence[Peer]
    plan: tuple[Cell, ...]
    loss: TableLoss
    threat: ThreatModel
    precision: Precision
    lanes: Lanes
    scaler: torch.amp.GradScaler
    remarks: list[str]

    def cells_of(self, k: int) -> list[Cell]:
        return [cell for cell in self.plan if cell.peer == k]

    def attacked(self, k: int) -> Network:
        """What peer k's attack runs on: its frozen twin, brought up to date, or its model."""
        peer = self.peers[k]
        inner = peer.objective.inner
        if peer.frozen is None or (inner is not None and inner.bn != "eval"):
            return peer.model
        peer.frozen.refold()
        return peer.frozen


def make_team(
    peers: Sequence[Peer],
    *,
    collab: str,
    alpha: float | None,
    threat: ThreatModel,
    precision: Precision,
    classes: int,
    example: Tensor,
    side_by_side: bool = True,
    mixed: bool = False,
) -> Team:
    """A team of peers whose attacked networks are frozen where they can be.

    example: two images or more [B, C, H, W] like those to come, on the device. side_by_side: give
    each peer a stream of its own on a GPU. mixed: batches are of images mixed of two. Raises
    InputError as `make_collaboration` and `TableLoss` do, and for several starts of `Squeeze`.
    """
    objectives = [peer.objective for peer in peers]
    taught_on = [own_view(k, objective) for k, objective in enumerate(objectives)]
    collaboration = make_collaboration(collab, taught_on, alpha)
    plan = make_plan(objectives, collaboration.reads)
    weight_dtype = peers[0].optimizer.flat.dtype
    names = [peer.name for peer in peers]
    loss = TableLoss(
        plan, names, objectives, collaboration, classes, example.device, weight_dtype, mixed
    )
    if threat.restarts > 1 and any(isinstance(o.inner, Squeeze) for o in objectives):
        raise InputError("st seeks its two views from one start: type --restarts 1")
    remarks = []
    for peer in peers:
        compute_dtype = weight_dtype if weight_dtype == torch.float64 else precision.dtype
        try:
            peer.frozen = Frozen(peer.model, compute_dtype, example.to(weight_dtype))
        except CannotFreeze as error:
            remarks.append(f"{peer.name} ({peer.arch}) is attacked as it is, more slowly: {error}")
    everyone = list(range(len(peers)))
    groups = [[k] for k in everyone] if side_by_side and example.is_cuda else [everyone]
    return Team(
        peers=peers,
        plan=plan,
        loss=loss,
        threat=threat,
        precision=precision,
        lanes=Lanes(groups, example.device),
        scaler=precision.grad_scaler(),
        remarks=remarks,
    )
