"""Natural training: L = CE(z(x), y), no attack."""

from fastcat.objectives.objective import Objective
from fastcat.terms import ce


def natural() -> Objective:
    return Objective(
        views=("clean",),
        inner=None,
        outer=ce("clean"),
    )
