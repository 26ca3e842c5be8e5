"""Robust accuracy: attacks by name on any model, with confidence intervals."""

from fastcat.evaluation.attack import (
    EvalAttack,
    EvaluationAttack,
    NoiseAttack,
    find_attack,
    parse_attacks,
)
from fastcat.evaluation.evaluate import Report, evaluate

__all__ = [
    "EvalAttack",
    "EvaluationAttack",
    "NoiseAttack",
    "Report",
    "evaluate",
    "find_attack",
    "parse_attacks",
]
