"""A collaboration: what each peer is taught, in terms of the logit table."""

from dataclasses import dataclass

from fastcat.plan import Place
from fastcat.terms import Sum


@dataclass(frozen=True, kw_only=True)
class Collaboration:
    """Peer k descends objective_weight * L_k + guidance[k].

    guidance: for each peer a weighted sum over cells (peer, view) of the table, in which the other
    peers' cells are constant teachers; empty where peers owe each other nothing.
    """

    objective_weight: float
    guidance: tuple[Sum, ...] = ()

    @property
    def reads(self) -> tuple[Place, ...]:
        """Every cell that guides anyone, each once."""
        return tuple(dict.fromkeys(cell for taught in self.guidance for cell in taught.cells))
