"""The house: what is installed, which way imports point, and that names lead somewhere."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastcat

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "loaders", "benchmarks")
SOURCES = sorted(path for top in ("fastcat", *LINKED) for path in ROOT.glob(f"{top}/**/*.py"))

# what is no module: recipes, and the C++ of kernels
DATA = {
    str(path.relative_to(ROOT)): "fastcat/" + str(path.relative_to(ROOT)).removeprefix("fastcat/")
    for pattern in ("fastcat/config/recipes/*.yaml", "kernels/*.cpp")
    for path in ROOT.glob(pattern)
}

# who may import whom inside the package: only what stands further down
LAYERS = (
    "__main__", "cli",
    "benchmarks",
    "runs", "course", "trainer", "recorder", "validate", "members",
    "engine", "step",
    "evaluation", "report", "over_seeds", "config",
    "finite", "team", "table_loss", "blueprint", "seek", "collaboration", "plan",
    "teacher", "peer",
    "objectives", "squeeze", "replay", "official",
    "union", "pgd", "frozen", "lanes", "threat", "terms",
    "awp", "sgd", "swa", "checkpoint", "foreign", "models",
    "trial", "precision", "watch",
    "environment", "device", "progress", "stop", "settings", "modes",
    "loaders", "guard", "schedules", "batch", "seeds", "files", "output", "cpus",
    "choices", "registry", "errors",
    "kernels",
)  # fmt: skip
LOADERS_MAY_IMPORT = {
    *("kernels", "guard", "batch", "seeds", "choices", "registry", "errors", "files", "cpus"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fastcat" else ("fastcat", *parts)
    return ".".join(parts).removesuffix(".__init__")


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
        "import fastcat, fastcat.step, fastcat.team;"
        "fastcat.attack, fastcat.ThreatModel"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_lead_somewhere() -> None:
    """Those imported on demand too; another is an AttributeError, as `hasattr` expects."""
    for name in fastcat.__all__:
        assert getattr(fastcat, name).__module__.startswith("fastcat.")
    assert not hasattr(fastcat, "no_such_name")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive, and the wheel built from it, of what git would check out."""
    source = tmp_path_factory.mktemp("source")
    kept = ["fastcat", *LINKED, "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in kept), str(source)], check=True)
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


@pytest.mark.slow
@pytest.mark.process
def test_the_wheel_holds_every_source_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {module_name(path).replace(".", "/") for path in SOURCES}
    expected |= set(DATA.values())
    assert {f.removesuffix(".py").removesuffix("/__init__") for f in files} == expected
    assert {name.split("/")[0] for name in files} == {"fastcat"}


@pytest.mark.slow
@pytest.mark.process
def test_the_wheel_runs_where_the_checkout_is_not(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import fastcat, fastcat.kernels.winograd, fastcat.loaders.registry, sys;"
        "from fastcat.cli import main;"
        "assert fastcat.__file__.startswith(sys.argv[1]), fastcat.__file__;"
        "fastcat.kernels.winograd.library();"
        "sys.exit(main(['list', 'methods', 'recipes']))"
    )
    # -P and -I keep the checkout, from which the tests run, off the path
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['', {str(tmp_path)!r}]; "
    )
    done = subprocess.run(
        [sys.executable, "-c", script + code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "trades" in done.stdout
    assert "cat-paper" in done.stdout


@pytest.mark.slow
def test_the_source_archive_holds_links_or_folders_for_all(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"fastcat/kernels/pgd_update.py", "fastcat/loaders/registry.py", "LICENSE"} <= names
    assert "fastcat/benchmarks/reference/plain.py" in names
    assert set(DATA.values()) <= names
