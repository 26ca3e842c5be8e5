"""The house: what is installed, which way imports point, and that names lead somewhere."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [*ROOT.glob("fastcat/**/*.py"), *ROOT.glob("kernels/*.py"), *ROOT.glob("loaders/*.py")]
)

# who may import whom inside the package: only what stands further right
LAYERS = (
    "cli",
    "runs",
    "trainer",
    "step",
    "collaboration",
    "plan",
    "objectives",
    "attack",
    "threat",
)


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


def layer(module: str) -> int | None:
    parts = module.split(".")
    return LAYERS.index(parts[1]) if len(parts) > 1 and parts[1] in LAYERS else None


def test_imports_go_down_only() -> None:
    wrong = []
    for path in SOURCES:
        own = layer(module_name(path))
        for name in imports(path):
            other = layer(name)
            if own is not None and other is not None and other < own:
                wrong.append(f"{module_name(path)} imports {name}")
            inside = name.startswith("fastcat.kernels") or not name.startswith("fastcat")
            if module_name(path).startswith("fastcat.kernels") and not inside:
                wrong.append(f"a kernel imports {name}")
            if module_name(path).startswith("fastcat.loaders") and other is not None:
                wrong.append(f"a loader imports {name}")
    assert not wrong


def test_kernels_and_loaders_are_no_packages_of_their_own() -> None:
    """An installed top-level `kernels` would overwrite another project's package of that name."""
    for folder in ("kernels", "loaders"):
        assert not (ROOT / folder / "__init__.py").exists()
        assert (ROOT / "fastcat" / folder).is_symlink()
        assert (ROOT / "fastcat" / folder).resolve() == ROOT / folder


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive, and the wheel built from it, of what git would check out."""
    source = tmp_path_factory.mktemp("source")
    kept = ["fastcat", "kernels", "loaders", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in kept), str(source)], check=True)
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dist


def test_the_wheel_holds_every_source_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {module_name(path).replace(".", "/") for path in SOURCES}
    assert {f.removesuffix(".py").removesuffix("/__init__") for f in files} == expected
    assert {name.split("/")[0] for name in files} == {"fastcat"}


def test_the_wheel_runs_where_the_checkout_is_not(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import fastcat, fastcat.kernels.pgd_update, fastcat.loaders.registry, sys;"
        "from fastcat.cli import main;"
        "assert fastcat.__file__.startswith(sys.argv[1]), fastcat.__file__;"
        "sys.exit(main(['list', 'methods']))"
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


def test_the_source_archive_holds_links_or_folders_for_both(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"fastcat/kernels/pgd_update.py", "fastcat/loaders/registry.py", "LICENSE"} <= names
