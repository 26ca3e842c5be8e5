"""The folders of the package, what each is for, and its files: the page on reading order has it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from tools.results import ROOT

# no packages of their own, but linked into fastcat
LINKED = {
    "kernels": "One file a kernel: formula, reference in plain PyTorch, Triton kernel, launcher.",
    "loaders": "Batches, data sets and file formats.",
    "benchmarks": "What is measured, and the papers' loops.",
}


def tree() -> str:
    """The package's folders, its own files, and the folders that are linked into it."""
    package = ROOT / "fastcat"
    lines = ["fastcat/"]
    for init in sorted(package.glob("*/__init__.py")):
        lines += branch(init.parent, purpose(init), "  ")
    lines += ["", *files(package, "  ")]
    for name, text in LINKED.items():
        lines += ["", *branch(ROOT / name, text, "")]
        for init in sorted((ROOT / name).glob("*/__init__.py")):
            lines += branch(init.parent, purpose(init), "  ")
    return "\n".join(["```text", *map(str.rstrip, lines), "```"])


def purpose(file: Path) -> str:
    """The first sentence of a module's docstring, if it ends in the first line."""
    line = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
    return line.partition(". ")[0].rstrip(".") + "." if line else ""


def branch(folder: Path, text: str, indent: str) -> Iterator[str]:
    """A folder with its purpose, and below it its files."""
    yield f"{indent}{folder.name + '/':16} {text}"
    yield from files(folder, f"{indent}    ")


def files(folder: Path, indent: str) -> list[str]:
    """The modules of a folder by name, several a line."""
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
    return wrap(" ".join(names), 100, initial_indent=indent, subsequent_indent=indent)
