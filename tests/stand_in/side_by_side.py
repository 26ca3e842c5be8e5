"""`python -m tests.stand_in.side_by_side [FAULT]`: races between the streams of a step.

Prints a JSON object a line: team, precision, how ("eager", four steps without a wait, or
"capture"), operations, streams, and races by kind. With a fault the streams of peers are forked or
joined wrongly, "no join" or "no fork", which must show.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from fastcat.step.algorithm import start_noise
from fastcat.step.engine import CudaGraph, static_inputs
from fastcat.step.streams import Streams
from tests.harness.gpu_runs import BATCH, DEVICE, MAT_MP, SGD, SIDE, Run, nets_of
from tests.harness.networks import images
from tests.stand_in.races import Races, watched
from tests.stand_in.stand_in import numbers_unread

TEAMS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "trades+alp": (("trades", "alp"), {}),
    "awp": (("trades", "alp"), {"awp": 0.01}),
    "at+st": (("at", "st"), {}),
    "merged": (("trades", "alp"), {"merged": True, "awp": 0.01}),
    "rslad+ard": (("rslad", "ard"), {"collab": "none"}),
    "rslad+iad": (("rslad", "iad"), {}),
    "free+at": (("free", "at"), {"collab": "none"}),
    **{f"mat-mp {way}": (("boosted", "trades", "at"), MAT_MP[way]) for way in MAT_MP},
}


def without_join(streams: Streams, work: Any) -> None:
    main = torch.cuda.current_stream()
    for stream, group in zip(streams.streams, streams.groups, strict=True):
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            work(group)


def without_fork(streams: Streams, work: Any) -> None:
    for stream, group in zip(streams.streams, streams.groups, strict=True):
        with torch.cuda.stream(stream):
            work(group)
    for stream in streams.streams:
        torch.cuda.current_stream().wait_stream(stream)


FAULTS = {"no join": without_join, "no fork": without_fork}


def batch(seed: int) -> list[torch.Tensor]:
    x, y = images(seed, BATCH, SIDE)
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    return [x, y.to(DEVICE), torch.arange(BATCH, device=DEVICE)]


def races_eagerly(run: Run, batches: list[list[torch.Tensor]]) -> Races:
    """Of a step on each batch, without a wait between them."""
    torch.cuda.synchronize()
    with watched() as races:
        for seed, inputs in enumerate(batches):
            run.engine.step(inputs, inputs[0], seed, SGD["lr"])
    return races


def races_in_a_capture(run: Run, inputs: list[torch.Tensor]) -> Races:
    noise = start_noise(run.team, inputs[0], run.engine.generator.manual_seed(0))
    inputs = static_inputs([*inputs, noise])
    run.engine._rehearse(inputs, 3)
    found: list[Races] = []

    def step(*inputs: torch.Tensor) -> torch.Tensor:
        with watched() as races:
            found.append(races)
            return run.engine._run(*inputs)

    CudaGraph(step, inputs, run.engine.stream)
    return found[0]


def outcomes(fault: str | None) -> Iterator[dict[str, Any]]:
    for name, (methods, settings) in list(TEAMS.items())[: 1 if fault else None]:
        for precision in ("bf16", "fp16"):
            run = Run(nets_of(len(methods)), methods, "eager", precision, **settings)
            batches = [batch(seed) for seed in range(4)]
            for peer in run.team.peers:
                peer.begin_attacks(batches[0][0])
            run.engine.step(batches[0], batches[0][0], 0, SGD["lr"])
            if fault:
                with mock.patch.object(Streams, "run", FAULTS[fault]):
                    found = {"eager": races_eagerly(run, batches)}
            else:
                found = {
                    "eager": races_eagerly(run, batches),
                    "capture": races_in_a_capture(run, batches[0]),
                }
            for how, races in found.items():
                yield {
                    "team": name,
                    "precision": precision,
                    "how": how,
                    "operations": races.operations,
                    "streams": len(races.streams),
                    "races": races.found,
                }


if __name__ == "__main__":
    with numbers_unread():
        for outcome in outcomes(sys.argv[1] if len(sys.argv) > 1 else None):
            print(json.dumps(outcome), flush=True)
