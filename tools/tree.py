"""The parts of the package from the roof down, and what each is for, drawn from their imports."""

import ast
from pathlib import Path

from tools.imports import LINKED, ROOT, floors

# what is no package of its own
TEXTS = {
    "kernels": "One file a kernel: formula, reference in plain PyTorch, Triton kernel, launcher.",
    "loaders": "Batches, data sets and file formats.",
    "benchmarks": "What is measured, and the papers' loops.",
}


def tree() -> str:
    """Folders and files of fastcat/: each imports only what stands below its line."""
    rows: dict[int, list[str]] = {}
    for name, floor in sorted(floors().items()):
        rows.setdefault(floor, []).append(name)
    lines = []
    for floor in sorted(rows, reverse=True):
        folders = [name for name in rows[floor] if (ROOT / "fastcat" / name).is_dir()]
        files = [f"{name}.py" for name in rows[floor] if name not in folders]
        lines += [f"{floor:2}  {f'{name}/':16} {about(name)}".rstrip() for name in folders]
        for n in range(0, len(files), 6):
            lines.append(f"{floor:2}  {'  '.join(files[n : n + 6])}")
    for folder in sorted(init for name in LINKED for init in (ROOT / name).glob("*/__init__.py")):
        lines.append(
            f"    {f'{folder.parents[1].name}/{folder.parent.name}/':18} {sentence(folder)}"
        )
    return "\n".join(["```text", *lines, "```"])


def about(name: str) -> str:
    """What a folder is for."""
    return TEXTS.get(name) or sentence(ROOT / "fastcat" / name / "__init__.py")


def sentence(init: Path) -> str:
    """The first sentence of a package's docstring."""
    text = (ast.get_docstring(ast.parse(init.read_text())) or "").partition("\n")[0]
    return text.partition(". ")[0].rstrip(".") + "." if text else ""
