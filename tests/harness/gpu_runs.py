"""Teams on a GPU, each with an engine, on batches of their own making."""

import copy
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import fastcat.step.engine
from fastcat.attacks.threat import OFFICIAL, ThreatModel, Threats
from fastcat.batch import Batch
from fastcat.objectives import make_objective
from fastcat.precision import make_precision
from fastcat.step.awp import WeightPerturbation
from fastcat.step.engine import Engine
from fastcat.step.peer import Peer
from fastcat.step.sgd import FlatSGD
from fastcat.step.team import make_team
from tests.harness.networks import CLASSES, images, tiny_net

DEVICE = torch.device("cuda")
BATCH, SIDE = 12, 8
THREAT = ThreatModel(eps=8 / 255, step_size=3 / 255, steps=3)
THREATS = Threats((THREAT,))
TWO = (THREAT, ThreatModel(norm="l2", eps=0.4, step_size=0.15, steps=2))
# a generalist of two threat models and their specialists
MAT_MP = {
    way: {"collab": "mat-mp", "threats": [Threats(TWO, way), *(Threats((one,)) for one in TWO)]}
    for way in ("avg", "max", "msd")
}
WITH_L1 = (*TWO, ThreatModel(norm="l1", eps=2.4, step_size=0.9, steps=2))
AFTER_MAINI = {
    name: {"collab": "none", "threats": [Threats(WITH_L1, way, official=True)]}
    for name, way in OFFICIAL.items()
}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-3, "nesterov": False}


class Run:
    """An engine on batches of its own making, with noise that is handed in."""

    def __init__(
        self,
        nets: list[nn.Module],
        methods: tuple[str, ...],
        engine: str,
        precision: str = "fp32",
        collab: str = "cat",
        side: int = SIDE,
        awp: float = 0.0,
        threats: Sequence[Threats] | None = None,
        merged: bool = False,
        **settings: Any,
    ) -> None:
        peers = []
        threats = threats or [THREATS] * len(methods)
        for k, (net, method) in enumerate(zip(nets, methods, strict=True)):
            net = copy.deepcopy(net).to(DEVICE, memory_format=torch.channels_last)
            optimizer = FlatSGD(net, **SGD, **settings)
            peer = Peer(
                f"{k}-{method}", "tiny", net, make_objective(method, {}), optimizer, threats[k]
            )
            peer.awp = WeightPerturbation(net, optimizer, awp) if awp else None
            peers.append(peer)
        example = images(0, 2, side)[0].to(DEVICE).contiguous(memory_format=torch.channels_last)
        self.team = make_team(
            peers,
            collab=collab,
            alpha=0.3 if collab == "cat" else None,
            precision=make_precision(precision, DEVICE),
            classes=CLASSES,
            example=example,
        )
        if merged:
            assert not self.team.merge_views(example)
        self.said: list[str] = []
        self.engine = Engine(self.team, Batch, BATCH, engine, self.said.append)
        torch.backends.cudnn.benchmark = False

    def step(
        self,
        x: Tensor,
        y: Tensor,
        noise: Tensor | None = None,
        seed: int = 0,
        mixing: Sequence[Tensor] = (),
    ) -> Tensor:
        x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
        inputs = (x, *(t.to(DEVICE) for t in (y, torch.arange(len(y)), *mixing)))
        if noise is None:
            return self.engine.step(inputs, x, seed, SGD["lr"])
        with mock.patch.object(fastcat.step.engine, "start_noise", return_value=noise.to(DEVICE)):
            return self.engine.step(inputs, x, seed, SGD["lr"])

    def state(self) -> list[Tensor]:
        tensors = [self.engine.totals, torch.cuda.get_rng_state()]
        for peer in self.team.peers:
            tensors += [peer.optimizer.flat, *peer.optimizer.tensors().values()]
            tensors += peer.model.buffers()
        return [tensor.clone() for tensor in tensors]


def nets_of(count: int) -> list[nn.Module]:
    return [tiny_net(k, nn.SiLU) for k in range(count)]
