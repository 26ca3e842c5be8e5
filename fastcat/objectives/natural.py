"""Natural training: L = CE(z(x), y), no attack."""

from fastcat import losses
from fastcat.objectives.objective import Objective


def natural() -> Objective:
    return Objective(
        views=("clean",),
        inner=None,
        outer=lambda z, y: {"ce": losses.ce(z["clean"], y).mean()},
    )
