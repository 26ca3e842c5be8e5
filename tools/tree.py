"""The folders of the package and what each is for: the page on reading order has them."""

import ast
from pathlib import Path

from tools.results import ROOT

# no packages of their own, but linked into fastcat
LINKED = {
    "kernels": "One file a kernel: formula, reference in plain PyTorch, Triton kernel, launcher.",
    "loaders": "Batches, data sets and file formats.",
    "benchmarks": "What is measured, and the papers' loops.",
}


def tree() -> str:
    """The package's folders, and those that are linked into it with theirs."""
    lines = ["fastcat/", *below(ROOT / "fastcat")]
    for name, text in LINKED.items():
        lines += ["", f"{name + '/':18} {text}".rstrip(), *below(ROOT / name)]
    return "\n".join(["```text", *lines, "```"])


def below(folder: Path) -> list[str]:
    """The packages in a folder, each with the first sentence of its docstring's first line."""
    lines = []
    for init in sorted(folder.glob("*/__init__.py")):
        text = (ast.get_docstring(ast.parse(init.read_text())) or "").partition("\n")[0]
        sentence = text.partition(". ")[0].rstrip(".") + "." if text else ""
        lines.append(f"  {init.parent.name + '/':16} {sentence}".rstrip())
    return lines
