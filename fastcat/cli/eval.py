"""`fastcat eval`."""

from collections.abc import Sequence

from fastcat.cli.parse import parse
from fastcat.config.evaluate import EvalConfig


def run(arguments: Sequence[str]) -> int:
    config = parse(EvalConfig, arguments, "eval")
    from fastcat.runs.evaluate import evaluate_run

    evaluate_run(config)
    return 0
