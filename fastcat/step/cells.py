"""Which network sees which view: the cells of the logit table z, in order, each once.

A place is (peer, view), z[k, v] are peer k's logits on view v. Views are "clean" and what is sought
for each peer: "adv0", "adv1", ..., and where a method seeks more "col0", "l2.adv0", ... Order
belongs to the method: every train-mode forward moves BatchNorm's statistics, unless it is
untracked.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fastcat.errors import InputError
from fastcat.objective import Objective, Place, own_views, view_name


class Cell(NamedTuple):
    """A forward of one member on one view: a peer in train mode, a teacher in eval mode.

    grad: whether the logits get a gradient
    tracked: whether BatchNorm's running statistics move
    """

    peer: int
    view: str
    grad: bool
    tracked: bool = True

    @property
    def place(self) -> Place:
        return self.peer, self.view


def places_of(
    k: int, objectives: Sequence[Objective], teacher_of: Mapping[int, int]
) -> dict[str, Place]:
    """The places of what peer k's objective calls "clean", "adv", ..., "teacher.adv", ...

    teacher_of: as `Collaboration` has it. Raises InputError where "teacher.own" is not one view.
    """
    places = {view: (k, view_name(k, view)) for view in objectives[k].views}
    for cell in objectives[k].reads:
        view = cell.removeprefix("teacher.")
        if view == "own":
            name, *others = own_views(teacher_of[k], objectives[teacher_of[k]])
            if others:
                raise InputError(
                    f"peer {k} reads what peer {teacher_of[k]} says of its own view, and there are "
                    f"{len(others) + 1}: expected one, without threat=avg"
                )
        else:
            name = view_name(k, view)
        places[cell] = (teacher_of[k], name)
    return places


def make_plan(
    objectives: Sequence[Objective],
    cross_cells: Sequence[Place],
    learning: Collection[Place],
    teacher_of: Mapping[int, int],
) -> tuple[Cell, ...]:
    """The cells of all members, in the order of the forwards.

    A member's cells are the views of its objective, then those that others' objectives read, then
    those that the collaboration alone reads.

    objectives: of all members
    cross_cells: what the collaboration reads
    learning: those of them with gradient; a teacher's have none all the same
    teacher_of: of each peer whose objective reads a teacher, that teacher's number
    """
    plan: list[Cell] = []
    read = [place for k in teacher_of for place in places_of(k, objectives, teacher_of).values()]
    cross_cells = list(dict.fromkeys([*read, *cross_cells]))
    for k, objective in enumerate(objectives):
        own = [view_name(k, view) for view in objective.views]
        plan += [
            Cell(k, view_name(k, view), True, view not in objective.untracked)
            for view in objective.views
        ]
        plan += [
            Cell(k, view, bool(own) and (k, view) in learning)
            for peer, view in cross_cells
            if peer == k and view not in own
        ]
    return tuple(plan)
