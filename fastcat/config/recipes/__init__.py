"""Settings of published runs, one YAML file each, read as `--config` reads one.

A file's first line says what it is; every setting names its source beside it, and the lines at the
end say what the source does that no setting expresses.
"""

from pathlib import Path

from fastcat.errors import InputError, nearest

RECIPES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The file of the recipe `name`. Raises InputError for an unknown one, with the nearest."""
    if name not in RECIPES:
        raise InputError(f"unknown recipe {name!r}: {nearest(name, RECIPES)}")
    return RECIPES[name]


def about(path: Path) -> str:
    """The first line of a recipe, which is a comment."""
    return path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
