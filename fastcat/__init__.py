"""Collaborative adversarial training: peer networks trained together, each taught by the others."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcat.attacks.pgd import attack
    from fastcat.attacks.threat import ThreatModel
    from fastcat.config.train import TrainConfig
    from fastcat.errors import InputError
    from fastcat.evaluation import evaluate
    from fastcat.loaders.items import from_items
    from fastcat.runs.api import RunResult, SeedsResult, resume, train
    from fastcat.runs.loading import load
    from fastcat.stop import Stopped

    __version__: str

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
    "load",
    "resume",
    "train",
]

# the module of each public name, imported when the name is asked for
_HOMES = {
    "InputError": "errors",
    "RunResult": "runs.api",
    "SeedsResult": "runs.api",
    "Stopped": "stop",
    "ThreatModel": "attacks.threat",
    "TrainConfig": "config.train",
    "attack": "attacks.pgd",
    "evaluate": "evaluation",
    "from_items": "loaders.items",
    "load": "runs.loading",
    "resume": "runs.api",
    "train": "runs.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from fastcat.environment import package_version

        return package_version("fastcat-at") or "0+unknown"
    if name == "methods":
        return importlib.import_module("fastcat.methods")
    if name not in _HOMES:
        raise AttributeError(f"module 'fastcat' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastcat.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "methods"]
