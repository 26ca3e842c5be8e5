"""Peers as they are typed: "trades:beta=6,mart@preactresnet18"."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastcat.errors import InputError
from fastcat.settings import split_settings

if TYPE_CHECKING:
    from fastcat.objective import Objective


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """One entry of --peers: the method with its settings, and the architecture.

    weights: the file of a teacher, None for what is trained; named_arch: whether arch was typed;
    awp: gamma of AWP, None where it is left to the run; threat: as `choose_threats` reads it.
    """

    method: str
    objective: "Objective"
    arch: str
    named_arch: bool = False
    weights: str | None = None
    awp: float | None = None
    threat: str | None = None


def parse_peers(text: str, default_arch: str) -> tuple[PeerSpec, ...]:
    """ "trades:beta=6,mart@preactresnet18" -> a PeerSpec for each peer.

    Grammar: METHOD[:KEY=VALUE]...[@ARCH], separated by commas; METHOD may be the user's own as
    package.module:function. Beside those of `make_objective` two settings are every method's: awp,
    gamma of its weight perturbation, and threat, the norm of the threat model that attacks it, or
    avg, max or msd of all of them.
    Raises InputError for what it cannot read.
    """
    from fastcat.attacks.multi_norm import msd_start
    from fastcat.attacks.threat import OFFICIAL
    from fastcat.attacks.training import TrainingAttack
    from fastcat.models import canonical_arch
    from fastcat.objectives import make_objective

    peers = []
    for entry in text.split(","):
        spec, _, arch = entry.strip().partition("@")
        method, *parts = spec.split(":")
        if parts and "=" not in parts[0]:
            method = f"{method}:{parts.pop(0)}"
        if not method:
            raise InputError(
                f"peers {text!r}: expected methods like trades,alp or trades:beta=6,at"
            )
        settings = split_settings(parts, f"peer {entry.strip()!r}", "trades:beta=6")
        awp, threat = settings.pop("awp", None), settings.pop("threat", None)
        objective = make_objective(method, settings)
        if threat is not None and objective.inner is None:
            raise InputError(f"peer {entry.strip()!r}: {method} is not attacked: leave threat out")
        inner = objective.inner
        if (
            threat in ("msd", *OFFICIAL)
            and "start" in settings
            and isinstance(inner, TrainingAttack)
            and msd_start(inner) != inner.start
        ):
            raise InputError(
                f"peer {entry.strip()!r}: {threat} starts at the image itself: leave start out"
            )
        peers.append(
            PeerSpec(
                method=method.rpartition(":")[2],
                objective=objective,
                arch=canonical_arch(arch or default_arch),
                named_arch=bool(arch),
                weights=settings["weights"] if method == "teacher" else None,
                awp=None if awp is None else _gamma(awp, entry.strip()),
                threat=threat,
            )
        )
    return tuple(peers)


def _gamma(text: str, entry: str) -> float:
    try:
        gamma = float(text)
    except ValueError:
        gamma = math.nan
    if not 0 <= gamma < math.inf:
        raise InputError(f"peer {entry!r}: awp is {text}, expected a gamma like 0.005, or 0")
    return gamma
