"""`python -m tests.stand_in.teams`: a step of many teams on the stand-in, each as one CUDA graph.

Prints a JSON object a line: team, methods, precision, mixed (whether images are mixed), nodes (of
the graph), graphs (launched in two steps after the capture), launches (of anything in them),
synchronisations (in them), violations and said (by the engine).
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from fastcat.models.ghost import split_norms
from tests.harness.gpu_runs import AFTER_MAINI, BATCH, DEVICE, MAT_MP, SGD, SIDE, Run, nets_of
from tests.harness.networks import images, mixing
from tests.stand_in.stand_in import counted, numbers_unread, synchronisations, violations


class Team(NamedTuple):
    """settings: of `Run`; precisions: in which it is captured; mixes: whether it takes mixed
    images.
    """

    name: str
    methods: tuple[str, ...]
    settings: dict[str, Any]
    precisions: tuple[str, ...] = ("bf16",)
    bn_groups: int = 1
    mixes: bool = True


ALL = ("fp32", "bf16", "fp16")
CAT, MAT, ALONE = ({"collab": name} for name in ("cat", "mat", "none"))
TEAMS = [
    Team("trades+alp", ("trades", "alp"), CAT, ALL),
    Team("trades+alp alone", ("trades", "alp"), ALONE),
    Team("mart", ("mart",), CAT),
    Team("natural+trades", ("natural", "trades"), CAT),
    Team("at+alp+trades", ("at", "alp", "trades"), CAT, ALL),
    Team("rslad+ard", ("rslad", "ard"), ALONE),
    Team("rslad+iad", ("rslad", "iad"), CAT, mixes=False),
    Team("at+st", ("at", "st"), CAT, ALL, mixes=False),
    Team("free+at", ("free", "at"), ALONE),
    Team("fast", ("fast",), ALONE),
    Team("act+natural", ("act", "natural"), ALONE),
    Team("pgd-cw", ("pgd-cw",), ALONE),
    Team("boosted", ("boosted", "boosted"), MAT, ALL),
    *(Team(f"mat-mp {way}", ("boosted", "trades", "at"), MAT_MP[way]) for way in MAT_MP),
    *(Team(name, ("at",), settings) for name, settings in AFTER_MAINI.items()),
    Team("awp", ("trades", "alp"), {"awp": 0.01}, ALL),
    Team("awp, groups", ("at", "st"), {"awp": 0.01}, bn_groups=3, mixes=False),
    Team("merged", ("trades", "alp"), {"merged": True}, ALL),
    Team("merged, awp", ("at", "st"), {"merged": True, "awp": 0.01}, mixes=False),
    Team("ema", ("trades", "alp"), {"ema": 0.9}),
]


def captured(team: Team, precision: str, mixed: bool) -> dict[str, Any]:
    nets = nets_of(len(team.methods))
    for net in nets if team.bn_groups > 1 else ():
        split_norms(net, BATCH // team.bn_groups)
    run = Run(nets, team.methods, "graph", precision, **team.settings)
    x, y = images(0, BATCH, SIDE)
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    for peer in run.team.peers:
        peer.begin_attacks(x)
    others = mixing(0, BATCH) if mixed else ()
    inputs = (x, *(t.to(DEVICE) for t in (y, torch.arange(BATCH), *others)))
    with counted() as first:
        run.engine.step(inputs, x, 0, SGD["lr"])
    before = synchronisations()
    with counted() as later:
        for seed in (1, 2):
            run.engine.step(inputs, x, seed, SGD["lr"])
    return {
        "nodes": sum(n for name, n in first.items() if name.startswith("capture:")),
        "graphs": sum(n for name, n in later.items() if name.startswith("eager:GRAPH")),
        "launches": later.total(),
        "synchronisations": synchronisations() - before,
        "violations": violations(),
        "said": run.said,
    }


def outcomes() -> Iterator[dict[str, Any]]:
    for team in TEAMS:
        for precision in team.precisions:
            for mixed in (False, True) if team.mixes else (False,):
                begin = {"team": team.name, "methods": team.methods}
                begin |= {"precision": precision, "mixed": mixed}
                yield begin | captured(team, precision, mixed)


if __name__ == "__main__":
    with numbers_unread():
        for outcome in outcomes():
            print(json.dumps(outcome), flush=True)
