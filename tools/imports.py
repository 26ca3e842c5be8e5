"""The package's own files, what each imports, and the order of its parts that follows from that."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
# folders beside fastcat/ that are linked into it
LINKED = ("kernels", "loaders", "benchmarks")
SOURCES = sorted(path for top in ("fastcat", *LINKED) for path in ROOT.glob(f"{top}/**/*.py"))


def module_name(path: Path) -> str:
    """fastcat/step/team.py is fastcat.step.team, kernels/losses.py is fastcat.kernels.losses."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fastcat" else ("fastcat", *parts)
    return ".".join(parts).removesuffix(".__init__")


@cache
def imports() -> dict[str, set[str]]:
    """Of each of the package's modules, the others that it imports, wherever it does."""
    modules = {module_name(path) for path in SOURCES}
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        own = module_name(path)
        package = own if path.name == "__init__.py" else own.rpartition(".")[0]
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                parts = package.split(".")[: -node.level + 1 or None] if node.level else []
                module = ".".join([*parts, *filter(None, [node.module])])
                names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        found[own] = (names & modules) - {own, "fastcat"}
    return found


def part(module: str) -> str:
    """The folder or file of the package that a module belongs to; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


@cache
def floors() -> dict[str, int]:
    """Of each part, 0 where it imports no other, else one more than the highest it imports.

    Raises graphlib.CycleError where parts import each other.
    """
    below: dict[str, set[str]] = {}
    for module, others in imports().items():
        if own := part(module):
            below.setdefault(own, set()).update({part(other) for other in others} - {own})
    levels: dict[str, int] = {}
    for name in TopologicalSorter(below).static_order():
        levels[name] = max((levels[other] + 1 for other in below[name]), default=0)
    return levels
