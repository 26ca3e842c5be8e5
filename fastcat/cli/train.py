"""`fastcat train`: options, files of settings, a run."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastcat.cli.parse import parse
from fastcat.config.recipes import recipe
from fastcat.config.train import TrainConfig
from fastcat.errors import InputError
from fastcat.files import find_path

# the same fields as TrainConfig, in the groups that its bases are
TrainGroups = dataclasses.make_dataclass(
    "TrainGroups",
    [
        (group.__name__.lower(), group, dataclasses.field(default_factory=group))
        for group in reversed(TrainConfig.__bases__)
    ],
    frozen=True,
    kw_only=True,
)

# what names a file of settings: how it is found, and what is expected
_FILES = {
    "--config": (find_path, "a YAML file, as --config runs/first/config.yaml"),
    "--recipe": (recipe, "a name of `fastcat list recipes`, as --recipe cat-paper"),
}


def run(arguments: Sequence[str]) -> int:
    """Train peers together; --config FILE takes settings from YAML, --recipe NAME a paper's."""
    config = read_config(arguments, "train", run.__doc__)
    from fastcat.cli.result import print_result
    from fastcat.runs.api import train

    print_result(train(config))
    return 0


def read_config(arguments: Sequence[str], command: str, text: str | None) -> TrainConfig:
    """The settings that a command's arguments say.

    text: what its help says first
    """
    arguments, files = _with_settings(arguments)
    groups = parse(TrainGroups, arguments, command, text)
    values: dict[str, Any] = {}
    for group in dataclasses.fields(groups):
        fields = getattr(groups, group.name)
        values |= {field.name: getattr(fields, field.name) for field in dataclasses.fields(fields)}
    try:
        return TrainConfig(**values)
    except InputError as error:
        if not files:
            raise
        raise InputError(f"{error} (with the settings of {', '.join(files)})") from error


def _with_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with what stands in their files of settings, and the names of these files.

    `--config FILE` and `--recipe NAME` may come several times: a later file overrides an earlier
    one, and all other arguments override both.
    """
    rest, from_files, files = [], [], []
    remaining = iter(arguments)
    for argument in remaining:
        flag, _, name = argument.partition("=")
        if flag in _FILES:
            from fastcat.config.yaml_file import yaml_arguments

            find, expected = _FILES[flag]
            name = name or next(remaining, "")
            if not name:
                raise InputError(f"{flag}: expected {expected}")
            from_files += yaml_arguments(find(name))
            files.append(name)
        else:
            rest.append(argument)
    return from_files + rest, files
