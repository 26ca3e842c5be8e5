"""A command's words as its dataclass of settings, and its --help."""

from collections.abc import Sequence
from typing import Any

import tyro


def parse(command: type, arguments: Sequence[str], name: str, text: str | None = None) -> Any:
    """The settings that the arguments say; SystemExit after --help and for unreadable ones.

    command: a dataclass, whose docstrings are the help.
    name: of the command, for example "data info".
    text: what the help says first, in place of the dataclass's docstring.
    """
    return tyro.cli(
        command,
        prog=f"fastcat {name}",
        description=text or command.__doc__,
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
