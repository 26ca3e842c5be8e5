"""What tests share stands in tests/harness and tests/reference; planted bugs follow the code."""

import ast
from pathlib import Path

from tests.plant_bugs import BUGS, files_of, place_of, read_bugs

TESTS = Path(__file__).parent
# methods_page and plant_bugs are commands, and have tests
SHARED = {"harness", "reference", "stand_in", "methods_page", "plant_bugs"}


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports from."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    return names | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_no_test_file_is_imported() -> None:
    """Catches a helper that leaves with the test file it stood in."""
    wrong = []
    for path in TESTS.rglob("*.py"):
        for name in imported(path):
            top, *rest = name.split(".")
            shared = len(rest) > 0 and rest[0] in SHARED and not rest[-1].startswith("test_")
            if top == "tests" and not shared:
                wrong.append(f"{path.relative_to(TESTS)} imports {name}")
    assert not wrong


def test_every_planted_bug_finds_its_code_and_tests() -> None:
    """Catches code that changed without its bug, which would then be planted nowhere."""
    bugs = read_bugs(BUGS)
    assert len(bugs) >= 60
    for bug in bugs:
        place_of(bug, TESTS.parent)
        assert files_of(bug, TESTS.parent)
        assert bug.text != bug.bug
