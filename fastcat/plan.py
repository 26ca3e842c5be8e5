"""Which network sees which view: the cells of the logit table z, in order, each once.

A place is (peer, view), z[k, v] are peer k's logits on view v. Views are "clean" and one
adversarial view a peer, "adv0", "adv1", ... Order belongs to the method: every train-mode forward
moves BatchNorm's statistics.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fastcat.objectives.objective import Objective

Place = tuple[int, str]


class Cell(NamedTuple):
    """Peer k forwards this view in train mode, with or without gradient; a teacher in eval mode."""

    peer: int
    view: str
    grad: bool

    @property
    def place(self) -> Place:
        return self.peer, self.view


def view_name(k: int, own_view: str) -> str:
    """The table's name for what peer k's objective calls "clean" or "adv"."""
    return f"adv{k}" if own_view == "adv" else own_view


def own_view(k: int, objective: Objective) -> str:
    """The view on which peer k is tested and taught: its adversarial one, where it has one."""
    return view_name(k, "clean" if objective.inner is None else "adv")


def make_plan(objectives: Sequence[Objective], cross_cells: Sequence[Place]) -> tuple[Cell, ...]:
    """Per peer its objective's views with gradient, then what the collaboration alone reads."""
    plan: list[Cell] = []
    for k, objective in enumerate(objectives):
        own = [view_name(k, view) for view in objective.views]
        plan += [Cell(k, view, True) for view in own]
        plan += [
            Cell(k, view, False) for peer, view in cross_cells if peer == k and view not in own
        ]
    return tuple(plan)
