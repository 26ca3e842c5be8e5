"""What tests share stands in tests/harness and tests/reference, and nowhere else."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
# methods_page writes docs/methods.md, and has a test
SHARED = {"harness", "reference", "methods_page"}


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
