"""A teacher that is not trained: no views, no attack, no loss; weights is a .safetensors file."""

from fastcat.objective import Objective, require
from fastcat.terms import Sum


def teacher(*, weights: str = "") -> Objective:
    expected = "a weight file, like teacher:weights=runs/first/peers/0-natural.best.safetensors"
    require(bool(weights), "teacher:weights", expected)
    return Objective(views=(), inner=None, outer=Sum())
