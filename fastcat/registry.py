"""Choices that are files of a package: objectives/pgd_cw.py holds the method pgd-cw.

A new choice is a new file, and nothing else is edited. The rule: every file of such a package is a
choice unless its name begins with an underscore, and a choice's function or class has its file's
name. `names` imports none of them, `load` imports one.
"""

import ast
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastcat.errors import InputError, nearest


@cache
def names(package: str) -> tuple[str, ...]:
    """The choices in a package, for example "fastcat.objectives", in alphabetical order."""
    return tuple(sorted(file.stem.replace("_", "-") for file in _files(package)))


def described(package: str) -> dict[str, str]:
    """By choice, the first line of its file's docstring; nothing is imported."""
    texts = {
        file.stem.replace("_", "-"): ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
        for file in _files(package)
    }
    return {name: texts[name].partition("\n")[0] for name in sorted(texts)}


def load(package: str, name: str, kind: str) -> Any:
    """The function or class of one choice.

    package: as in `names`.
    name: the choice, for example "pgd-cw".
    kind: what the error calls it, for example "method".
    Raises InputError for an unknown name, with the nearest.
    """
    if name not in names(package):
        raise InputError(f"unknown {kind} {name!r}: {nearest(name, names(package))}")
    file = name.replace("-", "_")
    return getattr(import_module(f"{package}.{file}"), file)


def _files(package: str) -> list[Path]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [file for folder in folders for file in Path(folder).glob("*.py")]
    return [file for file in files if not file.name.startswith("_")]
