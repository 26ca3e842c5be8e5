"""Writes what the pages take from elsewhere: `python -m tools.pages`.

Tables and pictures come from benchmarks/results/*.json, docs/command-line.md from the parser, the
tree of folders from the folders. A page holds a table between `<!-- table: NAME -->` and
`<!-- end -->`; the rest of it is written by hand. docs/methods.md and docs/learning.md have writers
of their own.
"""

import re
from pathlib import Path

from fastcat.files import write_text
from tools.command_line import page as command_line
from tools.pictures import THEMES, bars
from tools.results import ROOT, TABLES
from tools.tree import tree

TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)
WITH_TABLES = ("README.md", "docs/performance.md", "docs/data.md", "docs/reading.md")
MADE = {**TABLES, "tree": tree}


def pages() -> dict[Path, str]:
    """Every file that is written here, and what belongs in it now."""
    made = {
        ROOT / "docs/pictures" / f"speed-{name}.svg": bars(theme) for name, theme in THEMES.items()
    }
    made[ROOT / "docs/command-line.md"] = command_line()
    for name in WITH_TABLES:
        made[ROOT / name] = with_tables((ROOT / name).read_text())
    return made


def with_tables(text: str) -> str:
    """A page with its tables as the JSON files have them."""
    return TABLE.sub(lambda m: f"{m[1]}{MADE[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for path, text in pages().items():
        write_text(path, text)
