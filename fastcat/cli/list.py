"""`fastcat list`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from fastcat.cli.parse import parse
from fastcat.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Show every name that a command takes, with a line about it."""

    topics: Positional[Annotated[tuple[str, ...], arg(metavar="[TOPIC ...]")]] = ()
    """methods, archs, datasets, attacks, threats, collaborations, ...; all without one."""


def run(arguments: Sequence[str]) -> int:
    asked = parse(ListCommand, arguments, "list").topics
    from fastcat.cli.listings import LISTINGS

    topics = asked or tuple(LISTINGS)
    for topic in topics:
        if topic not in LISTINGS:
            raise InputError(f"cannot list {topic!r}: {nearest(topic, LISTINGS)}")
    for topic in topics:
        print(f"{topic}:")
        lines = LISTINGS[topic]()
        width = max(15, *map(len, lines))
        for name, text in lines.items():
            print(f"  {name:{width}} {text}")
    return 0
