"""A run's settings as a YAML file, and a YAML file as command-line arguments."""

import re
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from tyro.constructors import PrimitiveConstructorSpec

from fastcat.config.pixels import format_pixels
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError, nearest

# YAML's kinds of single values
_SCALARS = ("str", "int", "float", "bool", "null", "timestamp")


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `yaml_arguments` reads back to the same values."""
    values = config.to_dict()
    for name in ("eps", "step_size", "val_step_size"):
        if values[name] is not None:
            values[name] = format_pixels(values[name])
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False)


def yaml_arguments(path: Path) -> list[str]:
    """The settings of a YAML file as command-line arguments, so that both obey the same rules.

    A value is read as its option reads it, not as YAML guesses: 1e-3 is a number and 8/255 a
    length. Aliases of options are known too.
    Raises InputError, with the line, for a file that is missing or no flat mapping, a setting that
    is unknown or stands there twice, and a value of another kind.
    """
    try:
        with path.open("rb") as file:
            root = yaml.compose(file, Loader=yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{path}: expected lines like `epochs: 30`")
    hints = get_type_hints(TrainConfig, include_extras=True)
    known = _names(hints)
    lines: dict[str, int] = {}
    arguments = []
    for key, value in root.value:
        line = key.start_mark.line + 1
        where = f"{path}, line {line}"
        typed = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
        name = known.get(typed.replace("-", "_"))
        if name is None:
            raise InputError(
                f"{where}: unknown setting {typed!r} of fastcat train: {nearest(typed, known)}"
            )
        if name in lines:
            raise InputError(f"{where}: {name} stands in line {lines[name]} too: leave one out")
        lines[name] = line
        arguments.append(_argument(where, name, value, hints[name]))
    return arguments


def _names(hints: dict[str, Any]) -> dict[str, str]:
    """The settings by their own names and by those of their options' aliases."""
    names = {name: name for name in hints}
    for name, hint in hints.items():
        for extra in getattr(hint, "__metadata__", ()):
            for alias in getattr(extra, "aliases", None) or ():
                names[alias.lstrip("-").replace("-", "_")] = name
    return names


def _argument(where: str, name: str, node: yaml.Node, hint: Any) -> str:
    """The word of the command line for a setting; `where` begins the sentence of a refusal."""
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if not isinstance(node, yaml.ScalarNode) or tag not in _SCALARS:
        raise InputError(
            f"{where}: {name} is a list, a mapping or tagged, expected one value: text or a number"
        )
    option, text = name.replace("_", "-"), node.value
    kinds = _alternatives(hint)
    optional = type(None) in kinds
    if tag == "null":
        if not optional:
            raise InputError(f"{where}: {name} has no value: type one, or leave the line out")
        return f"--{option}=None"
    expected, read = _kind(kinds[0])
    if read in (int, float) and tag == "int" and re.match(r"[-+]?0\d", text):
        raise InputError(f"{where}: {name} is {text}, octal in YAML: type it without the first 0")
    try:
        value = read(text)
        # a yes or no is one wherever it stands, unless in quotes
        if tag == "bool" and not isinstance(value, bool):
            raise ValueError(text)
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from error
    except (ValueError, LookupError) as error:
        expected += " or null" if optional else ""
        shown = repr(text if len(text) < 50 else f"{text[:50]}...")
        shown += ", a yes or no unless in quotes" if tag == "bool" else ""
        raise InputError(f"{where}: {name} is {shown}, expected {expected}") from error
    if isinstance(value, bool) and not optional:
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option}={value if isinstance(value, bool) else text}"


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a hint allows."""
    if get_origin(hint) in (Union, UnionType):
        return get_args(hint)
    # the notes of an option stand around the types that it takes
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) in (Union, UnionType):
        return get_args(get_args(hint)[0])
    return (hint,)


def _kind(hint: Any) -> tuple[str, Callable[[str], Any]]:
    """What is expected of a type, in words, and what reads it: a ValueError, LookupError or
    InputError where a text is none.
    """
    notes = getattr(hint, "__metadata__", ())
    spec = next((one for one in notes if isinstance(one, PrimitiveConstructorSpec)), None)
    if spec is not None:
        from_words = spec.instance_from_str
        expected = f"one of {', '.join(spec.choices)}" if spec.choices else str(spec.metavar)
        return expected, lambda text: from_words([text])
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        choices = {choice: choice for choice in get_args(hint)}
        return f"one of {', '.join(choices)}", choices.__getitem__
    kinds: dict[Any, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", lambda text: yaml.SafeLoader.bool_values[text.lower()]),
        int: ("a whole number", int),
        float: ("a number", float),
        str: ("text", str),
    }
    return kinds[hint]
