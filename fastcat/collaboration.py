"""A collaboration: what each peer is taught, in terms of the logit table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastcat.attacks.threat import Threats
from fastcat.errors import InputError
from fastcat.objective import Objective, Place, own_views
from fastcat.terms import Side, Sum, kl

# of each peer the numbers of those that teach it
Teachers = Sequence[Sequence[int]]


class Student(NamedTuple):
    """A peer as it is taught.

    views: those on which it is taught, in equal shares
    norms: of the threat models that attack it
    way: how several of them do, a name of `fastcat.attacks.threat.WAYS`
    asks: whether its own objective reads its one teacher, and nothing else guides it
    """

    views: tuple[str, ...]
    norms: tuple[str, ...] = ("linf",)
    way: str | None = None
    asks: bool = False


def make_students(objectives: Sequence[Objective], threats: Sequence[Threats]) -> list[Student]:
    """The peers with these objectives, as those threats attack them.

    Raises InputError for avg-official in company.
    """
    if len(threats) > 1 and any(of_one.turns > 1 for of_one in threats):
        raise InputError(
            "avg-official updates its peer several times a batch: train it alone, or type "
            "threat=avg"
        )
    return [
        Student(own_views(k, objective), of_one.norms, of_one.way, objective.has_teacher)
        for k, (objective, of_one) in enumerate(zip(objectives, threats, strict=True))
    ]


@dataclass(frozen=True, kw_only=True)
class Collaboration:
    """The loss of peer k is objective_weights[k] * L_k + guidance[k]; all descend the sum of all.

    guidance: for each peer a weighted sum over cells (peer, view) of the table; empty for a peer
        that nobody teaches. Other peers' cells are constant in it, unless the collaboration says
        otherwise
    teacher_of: of each peer whose objective reads a teacher, that teacher's number
    """

    objective_weights: tuple[float, ...]
    guidance: tuple[Sum, ...]
    teacher_of: Mapping[int, int] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[Place, ...]:
        """Every cell that guides anyone, each once."""
        return tuple(dict.fromkeys(cell for taught in self.guidance for cell in taught.cells))

    @property
    def learning(self) -> set[Place]:
        """Those cells among them that get gradient."""
        terms = [term for taught in self.guidance for term in taught.terms]
        return {cell for term in terms for cell in term.cells if cell != term.constant_cell}


def taught_by(
    teachers: Sequence[Place], k: int, view: str, constant: Side | None = "teacher"
) -> Sum:
    """The sum over teachers of mean KL(p_teacher || p_k(view)).

    teachers: the cells of those who teach
    constant: whose logits get no gradient, as in `kl`
    """
    return sum((kl(place, (k, view), constant=constant) for place in teachers), Sum())


def weighted(guidance: Sequence[Sum], objective_weight: float) -> Collaboration:
    """A peer that nobody teaches descends its plain objective."""
    return Collaboration(
        objective_weights=tuple(objective_weight if taught.terms else 1.0 for taught in guidance),
        guidance=tuple(guidance),
    )
