"""A collaboration: the cells of the logit table it reads and the guidance it makes of them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastcat.plan import Table


@dataclass(frozen=True, kw_only=True)
class Collaboration:
    """Peer k descends objective_weight * L_k + guidance(z)[k].

    reads: cells (peer, view) of the table; guidance: from the table to one weighted scalar a peer,
    None where peers owe each other nothing.
    """

    objective_weight: float
    reads: tuple[tuple[int, str], ...] = ()
    guidance: Callable[[Table], list[Tensor]] | None = None
