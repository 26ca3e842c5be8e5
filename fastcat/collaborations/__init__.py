"""What peers owe each other. One file a method; the function's name is its public name.

A collaboration is a function of the peers as students, of who teaches whom, of alpha and of
settings of its own, and returns a Collaboration. In the guidance of a peer the other peers' logits
are constants, unless it says so. Who reads a teacher in an objective of its own has no guidance.
"""

from collections.abc import Sequence
from dataclasses import replace

from fastcat.collaboration import Collaboration, Student
from fastcat.collaborations._teachers import asked_teachers, parse_teachers
from fastcat.errors import InputError
from fastcat.registry import Choices
from fastcat.settings import read_settings, split_settings

COLLABORATIONS = Choices("fastcat.collaborations", "collaboration")
# their arguments that are no settings
APART = ("students", "teachers", "alpha")


def make_collaboration(
    text: str,
    students: Sequence[Student],
    alpha: float | None,
    teachers: str = "all",
    learns: Sequence[bool] | None = None,
) -> Collaboration:
    """The collaboration that `text` names, as cat or mat:detach=false, for these peers.

    students: the peers, as they are taught
    alpha: its weight in [0, 1]. None: the collaboration's default
    teachers: who teaches whom, as `parse_teachers` reads it
    learns: whether each peer is trained. None: all are

    Raises InputError for an unknown name or setting, an alpha outside [0, 1], for peers that cannot
    be taught or teach, and for settings that have no meaning.
    """
    name, *parts = text.split(":")
    method = COLLABORATIONS[name]
    typed = split_settings(parts, f"collab {text!r}", "cat:own_first=true")
    settings = read_settings(name, method, typed, APART)
    learns = [True] * len(students) if learns is None else learns
    pairs = parse_teachers(teachers, learns)
    teacher_of = asked_teachers(students, pairs, learns)
    guided = [[] if k in teacher_of else of_k for k, of_k in enumerate(pairs)]
    if name == "none":
        idle = [k for k in range(len(learns)) if not learns[k] and k not in teacher_of.values()]
        if idle or (teachers != "all" and any(guided)):
            raise InputError("with 'none' nobody teaches: type --collab cat or --collab mat")
    if alpha is not None and not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha:g}, expected a weight in [0, 1]: type for example 0.05")
    if alpha is not None and name == "none":
        raise InputError("alpha weighs objective against guidance, and 'none' has no guidance")
    weight = {} if alpha is None else {"alpha": alpha}
    return replace(method(students, guided, **weight, **settings), teacher_of=teacher_of)
