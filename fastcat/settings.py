"""Settings of a method as they are typed, "NAME:key=value:key=value", read as its defaults are."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fastcat.errors import InputError


def split_settings(parts: Sequence[str], where: str, example: str) -> dict[str, str]:
    """ "key=value" of each part; InputError says `where`, and the example, for one that is not."""
    settings = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{where}: expected settings like {example}")
        settings[key] = value
    return settings


def _parameters(
    function: Callable[..., Any], apart: Collection[str]
) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {key: value for key, value in parameters.items() if key not in apart}


def usage(name: str, function: Callable[..., Any], apart: Collection[str] = ()) -> str:
    """The settings of a function with their defaults, in a line; apart: arguments that are none."""
    parameters = _parameters(function, apart).values()
    settings = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    return f"{name} takes {', '.join(settings) or 'no settings'}"


def read_settings(
    name: str,
    function: Callable[..., Any],
    settings: Mapping[str, str],
    apart: Collection[str] = (),
) -> dict[str, Any]:
    """Arguments of the function called `name` from settings as typed; apart: as in `usage`.

    Raises InputError with the usage for a setting that is unknown, missing or unreadable.
    """
    parameters = _parameters(function, apart)
    values = {}
    for key, text in settings.items():
        if key not in parameters:
            raise InputError(f"{name} has no setting {key!r}: {usage(name, function, apart)}")
        try:
            values[key] = _read(text, parameters[key].default)
        except ValueError as error:
            kind = type(parameters[key].default).__name__
            raise InputError(
                f"{name}:{key}={text} is no {kind}: {usage(name, function, apart)}"
            ) from error
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise InputError(f"{name} needs {key}: {usage(name, function, apart)}")
    return values


def _read(text: str, default: Any) -> Any:
    """`text` as a number or text like the default, or else as YAML has it."""
    if type(default) in (int, float, str):
        value = type(default)(text)
        if isinstance(value, float) and math.isinf(value):
            raise ValueError(text)
        return value
    # here alone, so that the methods themselves need no package but torch
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(text) from error
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(text)
    return value
