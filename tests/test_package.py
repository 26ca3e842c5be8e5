"""The house: what is installed, which way imports point, and that names lead somewhere."""

import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

import fastcat
from tools.imports import LINKED, ROOT, floors, imports, part

# folders and files of the package from the roof down: each may import what stands below it
FLOORS = (
    ("__main__",),
    ("cli",),
    ("benchmarks",),
    ("runs",),
    ("report",),
    ("config", "evaluation", "weights"),
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
    ("registry", "runtime", "schedules", "seeds", "settings", "stop", "traced"),
    ("choices", "errors", "kernels", "output"),
)


def test_every_part_has_its_floor() -> None:
    """Catches a part that the test of imports would silently pass over."""
    named = [name for floor in FLOORS for name in floor]
    assert set(floors()) == set(named)
    assert len(set(named)) == len(named)


def test_imports_go_down_only() -> None:
    floor_of = {name: n for n, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for module, others in imports().items():
        own = part(module)
        for other in others if own else ():
            if own != part(other) and floor_of[part(other)] <= floor_of[own]:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_linked_folders_are_no_packages_of_their_own() -> None:
    """An installed top-level `kernels` would overwrite another project's package of that name."""
    for folder in LINKED:
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "fastcat" / folder).is_symlink()
        assert (ROOT / "fastcat" / folder).resolve() == ROOT / folder


def test_kernels_have_no_second_copy() -> None:
    """In a checkout `import kernels.x` finds the folder: its ops would be registered twice."""
    with pytest.raises(ImportError, match=r"import fastcat\.kernels, not the folder itself"):
        importlib.import_module("kernels.pgd_update")
    importlib.import_module("fastcat.kernels.pgd_update")


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
