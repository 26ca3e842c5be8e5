"""The house: what is installed, which way imports point, and that names lead somewhere."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastcat
from tests.harness.sources import LINKED, ROOT, SOURCES, module_name

# folders and files of the package from the roof down: each may import what stands below it
FLOORS = (
    ("__main__",),
    ("cli",),
    ("benchmarks",),
    ("runs",),
    ("report", "weights", "config", "evaluation"),
    ("methods",),
    ("step",),
    ("collaborations",),
    ("objectives",),
    # the vocabulary of methods and collaborations
    ("collaboration",),
    ("objective",),
    ("attacks", "terms", "models", "loaders"),
    # the ground floor
    ("batch", "cpus", "device", "environment", "files", "guard", "precision", "progress"),
    ("registry", "runtime", "schedules", "seeds", "settings", "stop"),
    ("choices", "errors", "kernels", "output"),
)
# whose arrows within a floor are these
BESIDE = {
    ("report", "config"),
    ("weights", "models"),
}


def imports(path: Path) -> set[str]:
    """The package's modules that a file imports."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -node.level + 1 or None] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found & MODULES


MODULES = {module_name(path) for path in SOURCES}
IMPORTS = {module_name(path): imports(path) - {"fastcat"} for path in SOURCES}


def wing(module: str) -> str | None:
    """The folder or file of the package that a module belongs to; None for the package itself."""
    return module.partition(".")[2].partition(".")[0] or None


def test_every_module_has_its_floor() -> None:
    """Catches a module that the test of imports would silently pass over."""
    named = [name for floor in FLOORS for name in floor]
    assert {wing(module) for module in MODULES} - {None} == set(named)
    assert len(set(named)) == len(named)


def test_imports_go_down_only() -> None:
    floor_of = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for module, imported in IMPORTS.items():
        own = wing(module)
        for name in imported if own else ():
            other = wing(name)
            if other is None or own == other or (own, other) in BESIDE:
                continue
            if floor_of[other] <= floor_of[own]:
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_itself_by_way_of_others() -> None:
    sorter = TopologicalSorter(
        {module: imported - {module} for module, imported in IMPORTS.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_linked_folders_are_no_packages_of_their_own() -> None:
    """An installed top-level `kernels` would overwrite another project's package of that name."""
    for folder in LINKED:
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "fastcat" / folder).is_symlink()
        assert (ROOT / "fastcat" / folder).resolve() == ROOT / folder


@pytest.mark.slow
@pytest.mark.process
def test_the_step_needs_none_of_the_packages_that_a_run_does() -> None:
    """Catches an import at the top that brings in what reads images, settings or files."""
    blocked = ["tyro", "yaml", "rich", "PIL", "torchvision", "safetensors", "sklearn"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked}));"
        "import fastcat, fastcat.step.algorithm, fastcat.step.team;"
        "fastcat.attack, fastcat.ThreatModel"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_lead_somewhere() -> None:
    """Those imported on demand too; another is an AttributeError, as `hasattr` expects."""
    for name in fastcat.__all__:
        assert getattr(fastcat, name).__module__.startswith("fastcat.")
    assert not hasattr(fastcat, "no_such_name")
