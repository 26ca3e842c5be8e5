"""Who teaches whom, as it is typed: "all", "ring" or "0>1,1>2"."""

import re
from collections.abc import Sequence

from fastcat.collaboration import Student, Teachers
from fastcat.errors import InputError


def parse_teachers(text: str, learns: Sequence[bool]) -> Teachers:
    """The numbers of each peer's teachers, ascending; a peer that is not trained has none.

    text: "all" (everyone else), "ring" (the peer before; the last teaches the first), or pairs like
        "0>1,1>2" (0 teaches 1, 1 teaches 2)
    learns: whether each peer is trained

    Raises InputError for other text, for a number without a peer, for a pupil that is not trained
    or would teach itself, and where nobody is trained or someone neither learns nor teaches.
    """
    if not any(learns):
        raise InputError("nobody is trained: type peers beside teachers, like at,teacher:...")
    peers = range(len(learns))
    if text == "all":
        pairs = [(j, k) for j in peers for k in peers if j != k]
    elif text == "ring":
        pairs = [((k - 1) % len(peers), k) for k in peers if len(peers) > 1]
    else:
        pairs = [_pair(entry.strip(), text, learns) for entry in text.split(",")]
    teachers = [sorted({j for j, k in pairs if k == taught and learns[k]}) for taught in peers]
    for k in peers:
        if not learns[k] and not any(k in of_one for of_one in teachers):
            student = list(learns).index(True)
            raise InputError(
                f"teachers {text!r}: peer {k} is not trained and teaches nobody, expected whom it "
                f"teaches, like {k}>{student}"
            )
    return teachers


def asked_teachers(
    students: Sequence[Student], teachers: Teachers, learns: Sequence[bool]
) -> dict[int, int]:
    """The one teacher of each peer whose objective reads one, by number.

    teachers: of `parse_teachers`
    Raises InputError for such a peer with none or several.
    """
    asking = [k for k, student in enumerate(students) if student.asks]
    for k in asking:
        if len(teachers[k]) != 1:
            how = "add teacher:weights=FILE.safetensors to --peers"
            if len(learns) > 1:
                j = 0 if all(learns) else list(learns).index(False)
                pairs = ",".join(f"{j if n != j else (j + 1) % len(learns)}>{n}" for n in asking)
                how = f"say which, as --teachers '{pairs}'"
            raise InputError(
                f"peer {k} learns from one teacher by its method, and has {len(teachers[k])}: {how}"
            )
    return {k: teachers[k][0] for k in asking}


def _pair(entry: str, text: str, learns: Sequence[bool]) -> tuple[int, int]:
    """ "0>1" -> (0, 1)."""
    if not re.fullmatch(r"[0-9]{1,9} *> *[0-9]{1,9}", entry):
        raise InputError(f"teachers {text!r}: expected all, ring, or who teaches whom like 0>1,1>2")
    teacher, taught = (int(part) for part in entry.split(">"))
    if max(teacher, taught) >= len(learns):
        raise InputError(
            f"teachers {text!r}: there is no peer {max(teacher, taught)}, expected numbers from 0 "
            f"to {len(learns) - 1} like 0>1"
        )
    if teacher == taught:
        raise InputError(f"teachers {text!r}: {entry} teaches itself, expected others like 0>1")
    if not learns[taught]:
        raise InputError(
            f"teachers {text!r}: peer {taught} is not trained and learns from nobody, expected it "
            f"on the left, like {taught}>{teacher}"
        )
    return teacher, taught
