"""Robust accuracy: attacks by name on any model, with confidence intervals."""

from fastcat.evaluation.evaluate import ATTACKS, EvalAttack, Report, evaluate, parse_attacks

__all__ = ["ATTACKS", "EvalAttack", "Report", "evaluate", "parse_attacks"]
