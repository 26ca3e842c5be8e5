"""Choices that are files of a package: objectives/pgd_cw.py holds the method pgd-cw.

A new choice is a new file, and nothing else is edited. The rule: every file of such a package is a
choice unless its name begins with an underscore, and a choice's function or class has its file's
name. `names` imports none of them, `load` imports one.
"""

import ast
from collections.abc import Iterator, Mapping
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
    """By choice the first line of its file's docstring; no choice is imported."""
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


def load_own(name: str, kind: str, *returns: type) -> Any:
    """The user's own function, named as `package.module:function`.

    kind: what errors call it, for example "method".
    returns: what it may be annotated to return. A function without such an annotation is none, so
        that a name out of a file cannot call anything else.
    Raises InputError for a name that leads nowhere.
    """
    module, _, function_name = name.partition(":")
    try:
        function = getattr(import_module(module), function_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"cannot import {kind} {name!r}: {error}") from error
    allowed = {*returns, *(one.__name__ for one in returns)}
    if getattr(function, "__annotations__", {}).get("return") not in allowed:
        raise InputError(
            f"{kind} {name!r}: expected a function annotated `-> {returns[0].__name__}`"
        )
    return function


class Choices(Mapping[str, Any]):
    """The choices in a package by name, each imported when it is asked for."""

    def __init__(self, package: str, kind: str) -> None:
        """package, kind: as in `load`."""
        self.package = package
        self.kind = kind

    def __getitem__(self, name: str) -> Any:
        return load(self.package, name, self.kind)

    def __contains__(self, name: object) -> bool:
        return name in names(self.package)

    def __iter__(self) -> Iterator[str]:
        return iter(names(self.package))

    def __len__(self) -> int:
        return len(names(self.package))


def _files(package: str) -> list[Path]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    files = [file for folder in folders for file in Path(folder).glob("*.py")]
    return [file for file in files if not file.name.startswith("_")]
