"""Settings: of a method as they are typed, "NAME:key=value:key=value", read as its defaults are;
of a configuration as Python programs set them.
"""

import inspect
import math
import numbers
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcat.errors import InputError


def split_settings(parts: Sequence[str], where: str, example: str) -> dict[str, str]:
    """The settings of texts "key=value", by key; a dash in a key becomes an underscore.

    where, example: what an error begins with, and what it shows
    Raises InputError for other text, and for a key that comes twice.
    """
    settings: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise InputError(f"{where}: expected settings like {example}")
        key = key.replace("-", "_")
        if key in settings:
            raise InputError(
                f"{where}: {key} stands there twice, as {settings[key]} and {value}: leave one out"
            )
        settings[key] = value
    return settings


def _parameters(
    function: Callable[..., Any], apart: Collection[str]
) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {key: value for key, value in parameters.items() if key not in apart}


def usage(name: str, function: Callable[..., Any], apart: Collection[str] = ()) -> str:
    """The settings of a function with their defaults, in a line.

    apart: arguments that are no settings
    """
    parameters = _parameters(function, apart).values()
    settings = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    return f"{name} takes {', '.join(settings) or 'no settings'}"


def read_settings(
    name: str,
    function: Callable[..., Any],
    settings: Mapping[str, str],
    apart: Collection[str] = (),
    also: str = "",
) -> dict[str, Any]:
    """Arguments for a function from settings as typed.

    name: what errors call the function
    settings: texts by key
    apart: arguments that are no settings
    also: what else may be typed there, for errors

    Raises InputError with the usage for a setting that is unknown, missing or unreadable.
    """
    parameters = _parameters(function, apart)
    takes = "; ".join([usage(name, function, apart), *filter(None, [also])])
    values = {}
    for key, text in settings.items():
        if key not in parameters:
            raise InputError(f"{name} has no setting {key!r}: {takes}")
        try:
            values[key] = _read(text, parameters[key].default)
        except ValueError as error:
            kind = type(parameters[key].default).__name__
            raise InputError(f"{name}:{key}={text} is no {kind}: {takes}") from error
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in values:
            raise InputError(f"{name} needs {key}: {takes}")
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


def settle_types(config: Any) -> None:
    """Make the values of a frozen dataclass those of its annotations, as a file can hold them.

    A path may be text and text a path, a number may be of numpy. Raises InputError for others.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        hint = _without_extras(hint)
        value, default = getattr(config, name), getattr(type(config), name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = tuple(map(_without_extras, kinds))
        plain = [_plain(value, kind) for kind in kinds if _is_of(value, kind)]
        if not plain:
            expected = " or ".join(map(_in_words, kinds))
            example = f", for example {default!r}" if default else ""
            flag = name.replace("_", "-")
            raise InputError(f"{flag} is {value!r:.40}, expected {expected}{example}")
        object.__setattr__(config, name, plain[0])


def _without_extras(hint: Any) -> Any:
    """The type that a hint is about: the Literal of their names where it takes certain ones."""
    if get_origin(hint) is not Annotated:
        return hint
    for extra in hint.__metadata__:
        if choices := getattr(extra, "choices", None):
            return Literal[choices]
    return get_args(hint)[0]


def _is_of(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    # True is a number for Python alone
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, _KINDS[kind][0])


def _plain(value: Any, kind: Any) -> Any:
    if kind in (int, float):
        return value if type(value) is int else kind(value)
    if kind is str:
        return os.fspath(value)
    return Path(value) if kind is Path else value


def _in_words(kind: Any) -> str:
    return ", ".join(get_args(kind)) if get_origin(kind) is Literal else _KINDS[kind][1]


# by annotation: what is one, and what it is called
_KINDS: dict[Any, tuple[Any, str]] = {
    NoneType: (NoneType, "None"),
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: ((str, os.PathLike), "text"),
    Path: ((str, os.PathLike), "a path"),
}
