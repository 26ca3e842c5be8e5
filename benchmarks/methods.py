"""The methods that `fastcat bench` races, each against the loop of its own paper's code.

A method is an entry in METHODS: what is typed for ours, and the loop from reference/. `--peers`
finds its loop here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastcat.benchmarks.reference.at import AtLoop
from fastcat.benchmarks.reference.awp import AtAwpLoop, TradesAwpLoop
from fastcat.benchmarks.reference.mat import MatLoop
from fastcat.benchmarks.reference.plain import PlainLoop
from fastcat.benchmarks.reference.squeeze import SqueezeLoop
from fastcat.benchmarks.reference.trades import TradesLoop
from fastcat.errors import InputError, nearest
from fastcat.objectives import make_objective
from fastcat.peer_spec import PeerSpec, parse_peers


@dataclass(frozen=True)
class Method:
    """loop: of the public code; peers, collab: as ours are typed."""

    loop: type[PlainLoop]
    peers: str
    collab: str = "cat"


METHODS = {
    "at": Method(AtLoop, "at"),
    "trades": Method(TradesLoop, "trades"),
    "alp": Method(PlainLoop, "alp"),
    "mart": Method(PlainLoop, "mart"),
    "st": Method(SqueezeLoop, "st"),
    "at-awp": Method(AtAwpLoop, "at:awp=0.01"),
    "trades-awp": Method(TradesAwpLoop, "trades:awp=0.005"),
    "cat": Method(PlainLoop, "trades,alp"),
    "mat": Method(MatLoop, "boosted,boosted", "mat"),
}

# of teams of PlainLoop's methods that are not above
PATTERNS: dict[str, type[PlainLoop]] = {"cat": PlainLoop, "mat": MatLoop}


def parse_methods(text: str) -> list[str]:
    """Names from METHODS, "all" for every one. Raises InputError for another."""
    names = list(METHODS) if text == "all" else text.split(",")
    for name in names:
        if name not in METHODS:
            raise InputError(f"unknown method {name!r} to race: {nearest(name, METHODS)}")
    return names


def typed(peers: str, collab: str) -> str:
    """The team as the command line has it."""
    return peers if collab == "cat" or "," not in peers else f"{peers} --collab {collab}"


def reference_for(specs: Sequence[PeerSpec], collab: str) -> tuple[type[PlainLoop], dict[str, Any]]:
    """The loop that a team is timed beside, and its settings.

    Raises InputError for a team whose methods no loop knows, and for one that attacks otherwise.
    """
    loop = _loop_for(specs, collab)
    for spec in specs:
        if spec.objective.inner != make_objective(spec.method, {}).inner:
            raise InputError(
                f"the reference loop of {spec.method!r} attacks as published: leave out the "
                "settings of its attack"
            )
    return loop, {"gamma": specs[0].awp} if specs[0].awp else {}


def _loop_for(specs: Sequence[PeerSpec], collab: str) -> type[PlainLoop]:
    for method in METHODS.values():
        if _kind(specs, collab) == _kind(parse_peers(method.peers, "resnet18"), method.collab):
            return method.loop
    if all(spec.method in PlainLoop.OBJECTIVES and not spec.awp for spec in specs):
        return PATTERNS[collab] if len(specs) > 1 else PlainLoop
    team = ",".join(f"{spec.method}:awp={spec.awp}" if spec.awp else spec.method for spec in specs)
    loops = [method for method in METHODS.values() if method.loop not in PATTERNS.values()]
    whole = [method.peers for method in loops if method.peers not in PlainLoop.OBJECTIVES]
    raise InputError(
        f"there is no reference loop of {team!r}: expected {', '.join(whole)} alone, or some of "
        f"{', '.join(PlainLoop.OBJECTIVES)} together"
    )


def _kind(specs: Sequence[PeerSpec], collab: str) -> tuple[object, ...]:
    """What decides which code was published for a team."""
    peers = [(spec.method, bool(spec.awp)) for spec in specs]
    return (*peers, collab if len(peers) > 1 else None)
