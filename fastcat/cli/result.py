"""What is printed when a run has ended."""

import shlex

from fastcat.report.seeds import rows, table
from fastcat.runs.api import RunResult, SeedsResult


def print_result(result: RunResult) -> None:
    """The best epochs of a run, or the spread over its seeds, and what to type next."""
    if isinstance(result, SeedsResult):
        title = f"{result.judged_on} images, {len(result.runs)} seeds, percent"
        print(table(rows(title, ("best", result.best_spread), ("last", result.last_spread))))
    else:
        for name, best in result.best.items():
            accuracies = ", ".join(
                f"{attack} {100 * value:.2f}%" for attack, value in best["accuracy"].items()
            )
            print(f"{name}: best on {best['judged_on']} after epoch {best['epoch']}: {accuracies}")
    run = shlex.quote(str(result.out))
    print(f"run: {run}   curves: {run}/report.html\nnext: fastcat eval {run}")
