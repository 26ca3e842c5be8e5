"""Collaborative adversarial training: peer networks trained together, each taught by the others."""

import importlib
from typing import TYPE_CHECKING, Any

from fastcat.attack import attack
from fastcat.errors import InputError
from fastcat.threat import ThreatModel

if TYPE_CHECKING:
    from fastcat.config import TrainConfig
    from fastcat.evaluation import evaluate
    from fastcat.loaders.items import from_items
    from fastcat.runs import RunResult, SeedsResult, resume, train
    from fastcat.stop import Stopped

__all__ = [
    "InputError",
    "RunResult",
    "SeedsResult",
    "Stopped",
    "ThreatModel",
    "TrainConfig",
    "attack",
    "evaluate",
    "from_items",
    "resume",
    "train",
]

# imported on demand: the step and its kernels need none of the packages that a run does
_HOMES = {
    "TrainConfig": "config",
    "evaluate": "evaluation",
    "from_items": "loaders.items",
    "RunResult": "runs",
    "SeedsResult": "runs",
    "resume": "runs",
    "train": "runs",
    "Stopped": "stop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastcat.{_HOMES[name]}"), name)
