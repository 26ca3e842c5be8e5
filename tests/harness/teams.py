"""Teams of small peers, put together as the trainer does."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fastcat.attacks.threat import ThreatModel, Threats
from fastcat.collaboration import Student
from fastcat.objective import Objective
from fastcat.objectives import make_objective
from fastcat.precision import Precision, make_precision
from fastcat.step.awp import WeightPerturbation
from fastcat.step.peer import Member, Peer, Teacher
from fastcat.step.sgd import FlatSGD
from fastcat.step.team import Team, make_team
from tests.harness.networks import CLASSES, images, tiny_net

FP32 = make_precision("fp32", torch.device("cpu"))
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": False}


def peer_of(
    name: str, objective: Objective, net: nn.Module, threats: Threats | None = None, **sgd: Any
) -> Peer:
    """sgd: what differs from SGD."""
    threats = threats or Threats((ThreatModel(steps=2),))
    return Peer(name, "tiny", net, objective, FlatSGD(net, **{**SGD, **sgd}), threats)


def taught_on(views: Sequence[str]) -> list[Student]:
    """A student for each of these views."""
    return [Student((view,)) for view in views]


def team_of(
    methods: Sequence[Objective | str],
    nets: Sequence[nn.Module] | None = None,
    names: Sequence[str] | None = None,
    *,
    collab: str = "cat",
    alpha: float | None = None,
    threat: ThreatModel | None = None,
    threats: Sequence[Threats] | None = None,
    precision: Precision = FP32,
    classes: int = CLASSES,
    side: int = 8,
    mixed: bool = False,
    teachers: str = "all",
    awp: Sequence[float] | None = None,
    **sgd: Any,
) -> Team:
    """A team of `tiny_net`s, unless there are others, for images [B, 3, side, side].

    names: those of the methods by default, "own" for what has none. awp: gamma of each peer;
    threats: of each peer, where they are not all attacked under `threat`.
    """
    nets = nets or [tiny_net(k) for k in range(len(methods))]
    names = names or [method if isinstance(method, str) else "own" for method in methods]
    members: list[Member] = []
    threats = threats or [Threats((threat or ThreatModel(steps=2),))] * len(methods)
    for k, (name, method, net) in enumerate(zip(names, methods, nets, strict=True)):
        if name == "teacher":
            members.append(Teacher(f"{k}-{name}", "tiny", net, "a.safetensors", "digest"))
            continue
        objective = make_objective(method, {}) if isinstance(method, str) else method
        members.append(peer_of(f"{k}-{name}", objective, net, threats[k], **sgd))
    for peer, gamma in zip(members, awp or [], strict=awp is not None):
        if gamma:
            assert isinstance(peer, Peer)
            peer.awp = WeightPerturbation(peer.model, peer.optimizer, gamma)
    return make_team(
        members,
        collab=collab,
        alpha=alpha,
        precision=precision,
        classes=classes,
        example=images(99, 2, side)[0].to(memory_format=torch.channels_last),
        mixed=mixed,
        teachers=teachers,
    )
