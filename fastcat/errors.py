"""The one exception for input that the user can mend: one sentence, exit status 2."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Its text says what was wrong, what was expected, and what to type instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?" for the known name closest to `name`, else the list of all."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
