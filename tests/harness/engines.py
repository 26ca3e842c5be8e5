"""Engines around teams, their steps, all that a step changes, and compilers that fail."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcat.batch import Batch
from fastcat.step.engine import Engine
from fastcat.step.team import Team
from tests.harness.networks import images


def gather(x: Tensor, y: Tensor) -> Batch:
    return Batch(x, y, torch.arange(len(y)))


BATCH = 11


def engine_of(team: Team, name: str = "eager") -> tuple[Engine, list[str]]:
    said: list[str] = []
    # as on a GPU
    return Engine(team, gather, BATCH, name, said.append, compile_training=True), said


def run(engine: Engine, step: int, size: int = BATCH, dtype: torch.dtype = torch.float32) -> Tensor:
    x, y = images(100 + step, size)
    x = x.to(dtype).to(memory_format=torch.channels_last)
    return engine.step((x, y), torch.empty_like(x), seed=step, lr=0.1 / (1 + step)).clone()


def state_of(team: Team) -> dict[str, Any]:
    """All that a step changes, and all that random numbers come from."""
    found: dict[str, Any] = {"random": torch.get_rng_state(), "scaler": team.scaler.state_dict()}
    for peer in team.peers:
        found |= {f"{peer.name} {key}": v.clone() for key, v in peer.model.state_dict().items()}
        found |= {f"{peer.name} {key}": v.clone() for key, v in peer.optimizer.tensors().items()}
    return found


class Fails(torch.autograd.Function):
    """The identity, whose backward cannot be had."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("no backward\nand a long story")


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def stand_in(moment: str) -> Callable[..., Any]:
    """What replaces torch.compile: a compiler that fails at this moment, on the second peer."""
    compiled: list[object] = []

    def compile(model: nn.Module, **_: Any) -> Callable[[Tensor], Tensor]:
        compiled.append(model)
        if len(compiled) != 2 or moment == "never":
            return model

        def failing(x: Tensor) -> Tensor:
            if moment == "forward":
                raise RuntimeError("no forward\nand a long story")
            if moment == "interrupted":
                raise Interrupted
            return Fails.apply(model(x))

        return failing

    return compile
