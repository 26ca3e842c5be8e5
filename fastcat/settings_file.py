"""A run's settings as a YAML file, and a YAML file as command-line arguments."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from fastcat.config import TrainConfig
from fastcat.errors import InputError, nearest
from fastcat.pixels import format_pixels


def to_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `yaml_arguments` reads back to the same values."""
    values = config.to_dict()
    for name in ("eps", "step_size", "val_step_size"):
        if values[name] is not None:
            values[name] = format_pixels(values[name])
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=False)


def yaml_arguments(path: Path) -> list[str]:
    """The settings of a YAML file as command-line arguments, so that both obey the same rules.

    Raises InputError for a file that is missing, no flat mapping, or has an unknown setting.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise InputError(f"{path} is not YAML: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines like `epochs: 30`")
    known = {field.name for field in fields(TrainConfig)}
    arguments = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise InputError(f"{path}: unknown setting {key!r}: {nearest(name, known)}")
        flag = name.replace("_", "-")
        if isinstance(value, (dict, list)):
            raise InputError(f"{path}: {key} is a {type(value).__name__}, expected one value")
        if isinstance(value, bool) and name != "flip":
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            arguments += [f"--{flag}", str(value)]
    return arguments
