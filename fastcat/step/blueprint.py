"""What a step will do, as data: who is taught by whom, which attacks run, who forwards which view.

It holds no network: a configuration is checked by making one, and a team is built after one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fastcat.attacks.threat import Threats
from fastcat.attacks.training import PeerAttack
from fastcat.collaboration import Collaboration, make_students
from fastcat.collaborations import make_collaboration
from fastcat.objective import Objective
from fastcat.step.attack_views import make_attacks
from fastcat.step.cells import Cell, make_plan


@dataclass(frozen=True)
class Blueprint:
    """objectives, threats: of each member, as its threat models attack it
    collaboration: what members owe each other
    attacks: the attacks on all members
    cells: the logit table, in the order of the forwards
    """

    objectives: tuple[Objective, ...]
    threats: tuple[Threats, ...]
    collaboration: Collaboration
    attacks: tuple[PeerAttack, ...]
    cells: tuple[Cell, ...]


def make_blueprint(
    objectives: Sequence[Objective],
    threats: Sequence[Threats],
    learns: Sequence[bool],
    *,
    collab: str,
    alpha: float | None,
    teachers: str = "all",
) -> Blueprint:
    """The blueprint of a step in which all members take part.

    objectives: what each is trained for, after `under`
    threats: the threat models that attack each; `NO_THREAT` for a teacher
    learns: whether each is trained
    collab, alpha, teachers: the collaboration, its weight and who teaches whom, as they are typed

    Raises InputError for members, attacks and a collaboration that do not go together.
    """
    students = make_students(objectives, threats)
    collaboration = make_collaboration(collab, students, alpha, teachers, learns)
    attacks = make_attacks(objectives, threats, collaboration.teacher_of)
    cells = make_plan(
        objectives, collaboration.reads, collaboration.learning, collaboration.teacher_of
    )
    return Blueprint(tuple(objectives), tuple(threats), collaboration, tuple(attacks), cells)
