"""What is built for others: a source archive, and the wheel from it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools.imports import LINKED, ROOT, SOURCES, module_name

pytestmark = [pytest.mark.slow, pytest.mark.process]

# what is no module: recipes, and the C++ of kernels
DATA = {
    str(path.relative_to(ROOT)): "fastcat/" + str(path.relative_to(ROOT)).removeprefix("fastcat/")
    for pattern in ("fastcat/config/recipes/*.yaml", "kernels/*.cpp")
    for path in ROOT.glob(pattern)
}


def build(source: Path, dist: Path, *what: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(dist)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would check out."""
    source = tmp_path_factory.mktemp("source")
    kept = ["fastcat", *LINKED, "tests", "setup.py", "pyproject.toml", "MANIFEST.in"]
    kept += ["README.md", "LICENSE"]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in kept), str(source)], check=True)
    return source


@pytest.fixture(scope="module")
def distributions(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source archive, and the wheel built from it."""
    dist = tmp_path_factory.mktemp("dist")
    build(source, dist)
    return dist


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }


def test_the_wheel_holds_every_source_and_nothing_else(distributions: Path) -> None:
    files = contents(next(distributions.glob("*.whl")))
    expected = {module_name(path).replace(".", "/") for path in SOURCES}
    expected |= {*DATA.values(), "fastcat/py.typed"}
    assert {f.removesuffix(".py").removesuffix("/__init__") for f in files} == expected
    assert {name.split("/")[0] for name in files} == {"fastcat"}


def test_a_checkout_without_links_builds_the_same_wheel(
    source: Path, distributions: Path, tmp_path: Path
) -> None:
    """Some systems check a link out as a text file that holds where it leads."""
    plain = tmp_path / "plain"
    shutil.copytree(source, plain, symlinks=True)
    for name in LINKED:
        link = plain / "fastcat" / name
        text = str(link.readlink())
        link.unlink()
        link.write_text(text)
    build(plain, tmp_path / "dist", "--wheel")
    with_links = contents(next(distributions.glob("*.whl")))
    assert contents(next((tmp_path / "dist").glob("*.whl"))) == with_links


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


def test_the_source_archive_holds_what_the_wheel_is_built_from(distributions: Path) -> None:
    """And no tests: some of them without what they share would be of no use."""
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = contents(next(distributions.glob("*.whl")))
    tops = tuple(f"fastcat/{top}/" for top in LINKED)
    expected = {name.removeprefix("fastcat/") if name.startswith(tops) else name for name in files}
    assert {*expected, "LICENSE", "README.md", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.startswith("tests")]
