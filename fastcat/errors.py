"""The one exception for input that the user can mend: one sentence, exit status 2."""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


class InputError(Exception):
    """Its text says what was wrong, what was expected, and what to type instead."""


def nearest(name: Any, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" for the known name closest to `name`, else the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def check_number(name: str, value: Any, example: str, whole: bool = False) -> None:
    """Raise InputError for a value that is no number.

    name: what errors call it
    example: a value to type instead
    whole: whether it must be an integer; True and False are no numbers
    """
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind):
        expected = "a whole number" if whole else "a number"
        raise InputError(f"{name} is {value!r:.40}, expected {expected}: type {example}")
