"""`fastcat tune`: how a GPU runs the steps of a team fastest, for runs to come."""

from collections.abc import Sequence

from fastcat.cli.train import read_config


def run(arguments: Sequence[str]) -> int:
    """Measure how this GPU runs a training step fastest, with networks compiled or not; options are
    those of `fastcat train`, which follows it with --engine auto and otherwise measures less."""
    config = read_config(arguments, "tune", " ".join((run.__doc__ or "").split()))
    from fastcat.runs.tuning import tune

    measured = tune(config)
    width = max(map(len, measured.steps))
    for plan, taken in measured.ranked():
        shown = taken if isinstance(taken, str) else f"{taken:8.2f} ms a step"
        chosen = "  chosen" if plan == str(measured.plan) else ""
        print(f"{plan:{width}}  {shown}{chosen}")
    return 0
