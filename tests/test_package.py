"""The house: what is installed, which way imports point, and that names lead somewhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastcat
from tests.harness.sources import LINKED, ROOT, SOURCES, module_name

# who may import whom inside the package: only what stands further down
LAYERS = (
    "__main__", "cli",
    "benchmarks",
    "runs", "course", "trainer", "recorder", "validate", "members",
    "engine", "step", "methods",
    "evaluation", "report", "over_seeds", "config",
    "finite", "team", "table_loss", "blueprint", "attack_views",
    "collaborations", "teaching", "collaboration", "plan",
    "teacher", "peer",
    "objectives", "objective", "squeeze", "free", "multi_norm_official",
    "multi_norm", "pgd", "frozen", "streams", "training_attack", "threat", "terms",
    "awp", "sgd", "swa", "checkpoint", "foreign", "models",
    "trial", "precision", "watch", "runtime",
    "environment", "device", "progress", "stop", "settings", "modes",
    "loaders", "guard", "schedules", "batch", "seeds", "files", "output", "cpus",
    "choices", "registry", "errors",
    "kernels",
)  # fmt: skip
LOADERS_MAY_IMPORT = {
    *("kernels", "guard", "batch", "seeds", "choices", "registry", "errors", "files", "cpus"),
}


def imports(path: Path) -> set[str]:
    """Absolute names of everything that a file imports."""
    package = module_name(path).rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(f"{package}.{node.module}" if node.level else str(node.module))
    return found


def layer(module: str) -> str | None:
    """The part of the package that a module belongs to; None for foreign ones."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "fastcat" and rest else None


def test_every_module_has_its_layer() -> None:
    """Catches a module that the test of imports would silently pass over."""
    assert {layer(module_name(path)) for path in SOURCES} - {None} == set(LAYERS)
    assert len(set(LAYERS)) == len(LAYERS)


def test_imports_go_down_only() -> None:
    wrong = []
    for path in SOURCES:
        own = layer(module_name(path))
        for name in imports(path):
            other = layer(name)
            if own is None or other is None or own == other:
                continue
            down = LAYERS.index(other) > LAYERS.index(own)
            if not down or (own == "loaders" and other not in LOADERS_MAY_IMPORT):
                wrong.append(f"{module_name(path)} imports {name}")
    assert not wrong


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
