"""All members with what binds them: what is sought, plan, losses of the table, precision."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastcat.attacks.frozen import CannotFreeze, Frozen
from fastcat.attacks.modes import Network
from fastcat.attacks.threat import NO_THREAT
from fastcat.attacks.training import PeerAttack
from fastcat.precision import Precision
from fastcat.step.blueprint import Blueprint, make_blueprint
from fastcat.step.cells import Cell
from fastcat.step.merged_views import CannotMerge, MergedViews
from fastcat.step.peer import Member, Peer
from fastcat.step.streams import Streams
from fastcat.step.table_loss import TableLoss


@dataclass
class Team:
    """members: in the order of the table's numbers
    blueprint: what a step of theirs does
    loss: of the whole table
    remarks: a line for each thing that could not be had, and why
    weights_cached(with_grad): context that is open while every weight keeps its value; with_grad
        says whether gradients reach the weights
    """

    members: Sequence[Member]
    blueprint: Blueprint
    loss: TableLoss
    precision: Precision
    streams: Streams
    scaler: torch.amp.GradScaler
    remarks: list[str]
    weights_cached: Callable[[bool], AbstractContextManager[object]] = nullcontext

    @cached_property
    def learners(self) -> dict[int, Peer]:
        """Those who are trained, by number."""
        return {k: peer for k, peer in enumerate(self.members) if isinstance(peer, Peer)}

    @cached_property
    def peers(self) -> list[Peer]:
        """Those who are trained."""
        return list(self.learners.values())

    @cached_property
    def targets(self) -> list[int]:
        """The members whose prediction another's attack moves away from."""
        teachers = {task.teacher for task in self.blueprint.attacks}
        return sorted(j for j in teachers if j is not None)

    @cached_property
    def turns(self) -> int:
        """Updates of the weights on each batch."""
        return max((task.threats.turns for task in self.blueprint.attacks), default=1)

    def cells_of(self, k: int) -> list[Cell]:
        return [cell for cell in self.blueprint.cells if cell.peer == k]

    def attacks_on(self, k: int) -> list[PeerAttack]:
        return [task for task in self.blueprint.attacks if task.peer == k]

    def attacked(self, k: int, bn: str = "eval") -> Network:
        """What an attack on peer k runs on: its frozen twin, brought up to date, or its model."""
        peer = self.learners[k]
        if peer.frozen is None or bn != "eval":
            return peer.model
        peer.frozen.refold()
        return peer.frozen

    def merge_views(self, example: Tensor) -> list[str]:
        """Let peers train on the views of a step at once, where they can; a line for each other.

        example: two images or more [B, C, H, W] like those to come, on the device
        """
        remarks = []
        for peer in self.peers:
            try:
                peer.merged = MergedViews(peer.model, example.to(peer.optimizer.flat.dtype))
            except CannotMerge as error:
                remarks.append(f"{peer.name} ({peer.arch}) is trained view by view: {error}")
        return remarks

    def part_views(self) -> None:
        """Let peers train view by view."""
        for peer in self.peers:
            peer.merged = None


def make_team(
    members: Sequence[Member],
    *,
    collab: str,
    alpha: float | None,
    precision: Precision,
    classes: int,
    example: Tensor,
    side_by_side: bool = True,
    mixed: bool = False,
    teachers: str = "all",
) -> Team:
    """A team of members; the networks that attacks run on are frozen where they can be.

    collab, alpha, teachers: the collaboration, its weight and who teaches whom, as they are typed
    precision: arithmetic of the networks
    classes: of the data
    example: two images or more [B, C, H, W] like those to come, on the device
    side_by_side: whether each member gets a stream of its own on a GPU
    mixed: whether batches are of images mixed of two

    Raises InputError as `make_blueprint` and `TableLoss` do.
    """
    objectives = [member.objective for member in members]
    threats = [member.threats if isinstance(member, Peer) else NO_THREAT for member in members]
    learns = [isinstance(member, Peer) for member in members]
    blueprint = make_blueprint(
        objectives, threats, learns, collab=collab, alpha=alpha, teachers=teachers
    )
    for task in blueprint.attacks:
        task.attack.check_classes(classes)
    peers = [member for member in members if isinstance(member, Peer)]
    weight_dtype = peers[0].optimizer.flat.dtype
    names = [member.name for member in members]
    loss = TableLoss(blueprint, names, classes, example.device, weight_dtype, mixed)
    remarks = []
    for peer in peers:
        compute_dtype = weight_dtype if weight_dtype == torch.float64 else precision.dtype
        try:
            peer.frozen = Frozen(peer.model, compute_dtype, example.to(weight_dtype))
        except CannotFreeze as error:
            remarks.append(f"{peer.name} ({peer.arch}) is attacked as it is, more slowly: {error}")
    everyone = list(range(len(members)))
    groups = [[k] for k in everyone] if side_by_side and example.is_cuda else [everyone]
    return Team(
        members=members,
        blueprint=blueprint,
        loss=loss,
        precision=precision,
        streams=Streams(groups, example.device),
        scaler=precision.grad_scaler(),
        remarks=remarks,
    )
