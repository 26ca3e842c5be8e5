"""Options that take one of several names, as `schedule: Annotated[str, one_of(SCHEDULES)]`."""

from collections.abc import Iterable

from tyro.constructors import PrimitiveConstructorSpec


def one_of(names: Iterable[str]) -> PrimitiveConstructorSpec[str]:
    """What an option's annotation says of its names; `settle_types` and YAML obey it too."""
    choices = {name: name for name in names}
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(choices) + "}",
        choices=tuple(choices),
        instance_from_str=lambda args: choices[args[0]],
        is_instance=lambda value: value in choices,
        str_from_instance=lambda value: [value],
    )
