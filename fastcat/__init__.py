"""Collaborative adversarial training: peers attacked with PGD, each taught by the others."""

from fastcat.attack import attack
from fastcat.config import TrainConfig
from fastcat.errors import InputError
from fastcat.evaluation import evaluate
from fastcat.runs import RunResult, resume, train
from fastcat.stop import Stopped
from fastcat.threat import ThreatModel

__all__ = [
    "InputError",
    "RunResult",
    "Stopped",
    "ThreatModel",
    "TrainConfig",
    "attack",
    "evaluate",
    "resume",
    "train",
]
