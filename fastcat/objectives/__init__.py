"""What a peer is trained for. One file a method; the function's name is the method's public name.

A method is a function of its settings that returns an Objective.
"""

import importlib
import inspect
from collections.abc import Callable

from fastcat.errors import InputError, nearest
from fastcat.objectives.alp import alp
from fastcat.objectives.at import at
from fastcat.objectives.mart import mart
from fastcat.objectives.natural import natural
from fastcat.objectives.objective import Objective
from fastcat.objectives.trades import trades

METHODS: dict[str, Callable[..., Objective]] = {
    method.__name__: method for method in (natural, at, trades, alp, mart)
}


def find_method(name: str) -> Callable[..., Objective]:
    """The method called `name`, or the user's own as `package.module:function`.

    Raises InputError for a name that leads nowhere.
    """
    if name in METHODS:
        return METHODS[name]
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise InputError(f"unknown method {name!r}: {nearest(name, METHODS)}")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import method {name!r}: {error}") from error


def usage(name: str, method: Callable[..., Objective]) -> str:
    """The settings of a method with their defaults, in a line."""
    parameters = inspect.signature(method).parameters.values()
    settings = ", ".join(f"{p.name}={p.default}" for p in parameters)
    return f"{name} takes {settings or 'no settings'}"


def make_objective(name: str, settings: dict[str, str]) -> Objective:
    """The objective of `find_method(name)` with settings as typed, converted as their defaults are.

    Raises InputError with the method's usage for a setting that it does not know or cannot read.
    """
    method = find_method(name)
    parameters = inspect.signature(method).parameters
    converted = {}
    for key, value in settings.items():
        if key not in parameters:
            raise InputError(f"{name} has no setting {key!r}: {usage(name, method)}")
        kind = type(parameters[key].default)
        try:
            converted[key] = kind(value)
        except ValueError as error:
            raise InputError(
                f"{name}:{key}={value} is no {kind.__name__}: {usage(name, method)}"
            ) from error
    return method(**converted)
