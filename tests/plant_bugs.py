"""Do the tests notice? `python -m tests.plant_bugs`: each bug of planted_bugs.txt, one at a time.

A bug is planted in a copy of the checkout, the tests named with it run until one fails, and a line
says whether the bug was killed. With --quick those of them run that `make quick` runs; with words,
bugs whose text has one of them. Survivors make the exit status 1. A bug whose text does not stand
exactly once in the sources is an error: mend planted_bugs.txt with the code that it quotes.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BUGS = Path(__file__).with_name("planted_bugs.txt")
SOURCES = ("fastcat", "kernels", "loaders")
QUICK = "not (slow or process or compile or gpu)"


class Bug(NamedTuple):
    """tests: files that should notice, without .py; text: of the code; bug: what replaces it."""

    tests: list[str]
    text: str
    bug: str


def read_bugs(path: Path) -> list[Bug]:
    """Blocks of "@ tests", "-" lines and "+" lines, with empty lines and comments between them."""
    bugs: list[tuple[list[str], list[str], list[str]]] = []
    for line in path.read_text().splitlines():
        kind, content = line[:1], line[2:]
        if kind == "@":
            bugs.append((content.split(), [], []))
        elif kind in ("-", "+"):
            bugs[-1]["-+".index(kind) + 1].append(content)
    return [Bug(tests, "\n".join(text), "\n".join(bug)) for tests, text, bug in bugs]


def place_of(bug: Bug, root: Path) -> Path:
    """The one source file where the text stands, and that once. Raises SystemExit for others."""
    files = [
        Path(folder, name)
        for top in SOURCES
        for folder, _, names in os.walk(root / top)
        for name in names
        if name.endswith((".py", ".cpp"))
    ]
    counts = {file: file.read_text().count(bug.text) for file in files}
    if sum(counts.values()) != 1:
        raise SystemExit(f"stands {sum(counts.values())} times in the sources: {bug.text!r}")
    return max(counts, key=counts.__getitem__)


def files_of(bug: Bug, root: Path) -> list[str]:
    """The test files that are named. Raises SystemExit where one is not there."""
    found = {name: sorted((root / "tests").rglob(f"{name}.py")) for name in bug.tests}
    for name, files in found.items():
        if not files:
            raise SystemExit(f"no test file {name}.py for {bug.text!r}")
    return [str(file) for files in found.values() for file in files]


def copy_checkout(to: Path) -> None:
    """What git knows or would add. Raises SystemExit where the copy's tests cannot be imported:
    they would kill every bug.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to / name, follow_symlinks=False)
    collect = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    if subprocess.run(collect, cwd=to, capture_output=True).returncode:
        raise SystemExit(f"the tests of a copy of {ROOT} cannot be imported")


def is_killed(bug: Bug, root: Path, quick: bool) -> bool:
    """Whether a test fails in the copy at `root`, which is as it was afterwards."""
    place = place_of(bug, root)
    right = place.read_text()
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    command += ["-m", QUICK] if quick else []
    place.write_text(right.replace(bug.text, bug.bug))
    try:
        done = subprocess.run(
            [*command, *files_of(bug, root)], cwd=root, capture_output=True, timeout=1200
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        place.write_text(right)
    # 5: none of the tests is among the quick ones
    return done.returncode not in (0, 5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="bugs whose text has one of these, else all")
    parser.add_argument("--quick", action="store_true", help="by the tests of `make quick` alone")
    parser.add_argument("--check", action="store_true", help="only whether every text is found")
    options = parser.parse_args()
    bugs = [
        bug
        for bug in read_bugs(BUGS)
        if not options.words or any(word in bug.text for word in options.words)
    ]
    for bug in bugs:
        place_of(bug, ROOT)
        files_of(bug, ROOT)
    if options.check:
        return 0
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "checkout")
        copy_checkout(copy)
        for bug in bugs:
            killed = is_killed(bug, copy, options.quick)
            survivors += not killed
            print(
                "killed  " if killed else "SURVIVED", bug.text.splitlines()[0].strip(), flush=True
            )
    print(f"{len(bugs) - survivors} of {len(bugs)} killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
