"""The methods that `fastcat bench` races, each against the loop of its own paper's code.

A method is an entry in METHODS: what is typed for ours, and the loop from reference/. `--peers`
finds its loop here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastcat.attacks.threat import WAYS
from fastcat.benchmarks.reference.at import AtLoop
from fastcat.benchmarks.reference.awp import AtAwpLoop, TradesAwpLoop
from fastcat.benchmarks.reference.distill import ActLoop, ArdLoop, IadLoop, RsladLoop
from fastcat.benchmarks.reference.fast import FastLoop, NFgsmLoop
from fastcat.benchmarks.reference.free import FreeLoop
from fastcat.benchmarks.reference.mat import MatLoop
from fastcat.benchmarks.reference.mat_mp import MatMpLoop
from fastcat.benchmarks.reference.pgd_cw import PgdCwLoop
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.benchmarks.reference.squeeze import SqueezeLoop
from fastcat.benchmarks.reference.trades import TradesLoop
from fastcat.benchmarks.reference.union import BALLS, UnionLoop
from fastcat.config.peers import PeerSpec, parse_peers
from fastcat.errors import InputError, nearest
from fastcat.objectives import make_objective


@dataclass(frozen=True)
class Method:
    """loop: of the public code; peers, collab: as ours are typed."""

    loop: type[PlainLoop]
    peers: str
    collab: str = "cat"


SPECIALISTS = ",".join(f"boosted:threat={ball.norm}" for ball in BALLS)

METHODS = {
    "at": Method(AtLoop, "at"),
    "trades": Method(TradesLoop, "trades"),
    "alp": Method(PlainLoop, "alp"),
    "mart": Method(PlainLoop, "mart"),
    "st": Method(SqueezeLoop, "st"),
    "at-awp": Method(AtAwpLoop, "at:awp=0.01"),
    "trades-awp": Method(TradesAwpLoop, "trades:awp=0.005"),
    "fast": Method(FastLoop, "fast"),
    "n-fgsm": Method(NFgsmLoop, "fast:variant=n"),
    "free": Method(FreeLoop, "free"),
    "cat": Method(PlainLoop, "trades,alp"),
    "cat-official": Method(PlainLoop, "trades:log_forward=true,alp"),
    "pgd-cw": Method(PgdCwLoop, "pgd-cw"),
    "mat": Method(MatLoop, "boosted,boosted", "mat"),
    **{f"at-{way}": Method(UnionLoop, f"at:threat={way}") for way in WAYS},
    **{
        f"mat-mp-{way}": Method(MatMpLoop, f"boosted:threat={way},{SPECIALISTS}", "mat-mp")
        for way in WAYS
    },
    "ard": Method(ArdLoop, "ard,teacher:weights=random", "none"),
    "rslad": Method(RsladLoop, "rslad,teacher:weights=random", "none"),
    "iad": Method(IadLoop, "iad:begin=0,teacher:weights=random", "none"),
    "act": Method(ActLoop, "act:role=natural,act:role=robust", "none"),
}

# of teams of PlainLoop's methods that are not above
PATTERNS: dict[str, type[PlainLoop]] = {"cat": PlainLoop, "mat": MatLoop, "mat-mp": MatLoop}


def parse_methods(text: str) -> list[str]:
    """Names from METHODS, "all" for every one. Raises InputError for another."""
    names = list(METHODS) if text == "all" else text.split(",")
    for name in names:
        if name not in METHODS:
            raise InputError(f"unknown method {name!r} to race: {nearest(name, METHODS)}")
    return names


def typed(peers: str, collab: str) -> str:
    """The team as it is typed on the command line."""
    return peers if collab == "cat" or "," not in peers else f"{peers} --collab {collab}"


def reference_for(specs: Sequence[PeerSpec], collab: str) -> tuple[type[PlainLoop], dict[str, Any]]:
    """The reference loop of a team, and its settings.

    Raises InputError for a team whose methods have no loop, and for one with another attack.
    """
    loop = _loop_for(specs, collab)
    settings: dict[str, Any] = {"gamma": specs[0].awp} if specs[0].awp else {}
    if issubclass(loop, UnionLoop):
        settings["threats"] = [spec.threat for spec in specs]
    return loop, settings


def _loop_for(specs: Sequence[PeerSpec], collab: str) -> type[PlainLoop]:
    for method in METHODS.values():
        if _kind(specs, collab) == _kind(parse_peers(method.peers, "resnet18"), method.collab):
            return method.loop
    for spec in specs:
        if spec.objective.inner and spec.objective.inner != make_objective(spec.method, {}).inner:
            raise InputError(
                f"the reference loop of {spec.method!r} attacks as published: leave out the "
                "settings of its attack"
            )
    plain = all(
        spec.method in PlainLoop.OBJECTIVES and not spec.awp and not spec.threat for spec in specs
    )
    if plain and len(specs) == 1:
        return PlainLoop
    if plain and collab in PATTERNS:
        return PATTERNS[collab]
    loops = [method for method in METHODS.values() if method.loop not in PATTERNS.values()]
    whole = [method.peers for method in loops if method.peers not in PlainLoop.OBJECTIVES]
    alone = [peers for peers in whole if "," not in peers]
    raise InputError(
        f"there is no reference loop of {typed(_spelled(specs), collab)!r}: expected "
        f"{', '.join(alone)} alone, some of {', '.join(PlainLoop.OBJECTIVES)} together, or a team "
        "that --what methods knows"
    )


def _spelled(specs: Sequence[PeerSpec]) -> str:
    awp = [f":awp={spec.awp}" if spec.awp else "" for spec in specs]
    threat = [f":threat={spec.threat}" if spec.threat else "" for spec in specs]
    names = [spec.method for spec in specs]
    return ",".join(map("".join, zip(names, awp, threat, strict=True)))


def _kind(specs: Sequence[PeerSpec], collab: str) -> tuple[object, ...]:
    """The settings of a team that decide which published code computes the same."""
    peers = [(spec.method, spec.objective.inner, bool(spec.awp), spec.threat) for spec in specs]
    return (*peers, collab if len(peers) > 1 else None)
