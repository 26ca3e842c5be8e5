"""What peers owe each other. One file a method; the function's name is its public name.

A collaboration is a function of the views on which the peers are taught and of alpha, and returns
a Collaboration. In the guidance of a peer the other peers' logits are constants.
"""

from collections.abc import Callable, Sequence

from fastcat.collaboration.cat import cat
from fastcat.collaboration.collaboration import Collaboration
from fastcat.collaboration.none import none
from fastcat.errors import InputError, nearest

COLLABORATIONS: dict[str, Callable[..., Collaboration]] = {
    method.__name__: method for method in (cat, none)
}


def make_collaboration(name: str, taught_on: Sequence[str], alpha: float | None) -> Collaboration:
    """The collaboration called `name` for peers taught on these views; alpha None is its default.

    Raises InputError for an unknown name, an alpha outside [0, 1], or one that has no meaning.
    """
    if name not in COLLABORATIONS:
        raise InputError(f"unknown collaboration {name!r}: {nearest(name, COLLABORATIONS)}")
    if alpha is None:
        return COLLABORATIONS[name](taught_on)
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha:g}, expected a weight in [0, 1]: type for example 0.05")
    if name == "none":
        raise InputError("alpha weighs objective against guidance, and 'none' has no guidance")
    return COLLABORATIONS[name](taught_on, alpha=alpha)
