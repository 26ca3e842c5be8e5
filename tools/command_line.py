"""docs/command-line.md: every command with its options, read off the parsers themselves."""

import re
import warnings
from argparse import Action, ArgumentParser
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import tyro

from fastcat.cli import COMMANDS, main
from fastcat.cli.data import DATA_COMMANDS

HEAD = """# Command line

Written by `python -m tools.pages` from the parsers of the commands. `fastcat COMMAND --help` says
the same in the terminal. Words of an option are joined by `-` or `_`; its value follows
after a space or `=`.
"""


class _Caught(BaseException):
    """Thrown in place of parsing."""


def parser_of(command: str) -> ArgumentParser:
    """The parser that `fastcat COMMAND` would use."""
    made: list[ArgumentParser] = []

    def catch(target: Any, **settings: Any) -> None:
        settings.pop("args")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            made.append(tyro.extras.get_parser(target, **settings))
        raise _Caught

    with patch("tyro.cli", catch), suppress(_Caught):
        main(command.split())
    return made[0]


def commands() -> list[str]:
    """Each command as it is typed after `fastcat`."""
    names = [name for name in COMMANDS if name != "data"]
    return names + [f"data {name}" for name in DATA_COMMANDS]


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(line for name in commands() for line in section(name))])


def section(command: str) -> Iterator[str]:
    """A command: how it is typed, what it does, and tables of its options in their groups."""
    parser = parser_of(command)
    actions = [a for group in parser._action_groups for a in group._group_actions]
    places = " ".join(str(a.metavar) for a in actions if not a.option_strings)
    yield f"## fastcat {command}\n"
    yield f"```text\nfastcat {command} [OPTIONS] {places}".rstrip() + "\n```\n"
    yield f"{sentence(parser.description or '')}\n"
    for group in parser._action_groups:
        rows = [a for a in group._group_actions if "--help" not in a.option_strings]
        if rows:
            title = str(group.title).removesuffix(" options").capitalize()
            yield f"### {title}\n" if group.description else f"**{title}**\n"
            if group.description:
                yield f"{sentence(group.description)}\n"
            yield "| option | default | meaning |\n|---|---|---|"
            yield from map(row, rows)
            yield ""


def row(action: Action) -> str:
    """An option: its names and values, its default, its meaning."""
    text, default = " ".join((action.help or "").replace("%%", "%").split()), ""
    if found := re.fullmatch(r"(.*?) ?\((?:default: (.*)|(required))\)", text):
        text, default = found[1], found[3] or f"`{found[2]}`"
    names = action.option_strings
    # an alias stands before the name in the parser
    names = names if any(name.startswith("--no-") for name in names) else names[::-1]
    values = str(action.metavar or "").replace("{None}|", "").replace("None,", "")
    values = values.strip("{}").replace(",", ", ")
    typed = " ".join([", ".join(f"`{name}`" for name in names), values]).strip()
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in (typed, default, text)) + " |"


def sentence(text: str) -> str:
    """A text in one line, begun with a capital, with a full stop."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:].rstrip(".") + "."
