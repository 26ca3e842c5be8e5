"""For mkdocstrings: the lines about parameters in a docstring become a list.

The project writes them as `name: shape, range, meaning`, a line each, which Markdown would join
into one paragraph.
"""

import re
from typing import Any

from griffe import Class, Extension, Function


def listed(text: str, names: set[str]) -> str:
    """`text` with each line that begins with one of `names` and a colon as an item of a list."""
    lines: list[str] = []
    within = False
    for line in text.splitlines():
        found = re.match(r"(\w+(?:, \w+)*): (.*)", line)
        if found and {*found[1].split(", ")} <= names:
            lines += [] if within else [""]
            lines.append(f"- `{found[1]}`: {found[2]}")
            within = True
        elif within and line.strip() and not line.startswith("Raises "):
            lines.append(f"  {line.strip()}")
        else:
            lines += [""] if within else []
            lines.append(line)
            within = False
    return "\n".join(lines)


class ParameterLists(Extension):
    """Applied to every function, and to every class with its fields for parameters."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        if func.docstring:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = listed(func.docstring.value, names)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        if cls.docstring:
            names = set(cls.attributes) | {parameter.name for parameter in cls.parameters}
            cls.docstring.value = listed(cls.docstring.value, names)
