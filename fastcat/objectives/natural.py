"""Natural training: L = CE(z(x), y), no attack; smoothing is that of the labels."""

from fastcat.objective import Objective, require
from fastcat.terms import ce


def natural(*, smoothing: float = 0.0) -> Objective:
    require(0 <= smoothing < 1, f"natural:smoothing={smoothing:g}", "a share in [0, 1)")

    return Objective(
        views=("clean",),
        inner=None,
        outer=ce("clean", smoothing),
    )
