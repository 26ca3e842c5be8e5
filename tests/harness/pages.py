"""README and docs/ as data: their fenced blocks, commands, links and anchors."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return [(language, text) for _, language, text in _FENCE.findall(page.read_text())]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def commands(page: Path) -> Iterator[list[str]]:
    """Every `fastcat ...` of a page as arguments: in sh blocks, in prose those with options."""
    for language, text in fences(page):
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["fastcat"]:
                    yield words[1:]
    for code in re.findall(r"`fastcat ([^`]+)`", prose(page)):
        if " --" in code and "COMMAND" not in code:
            yield shlex.split(" ".join(code.split()))


def links(page: Path) -> set[str]:
    """Targets of links and pictures that are not on another host."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    return {a or b for a, b in found if not re.match(r"https?:", a or b)}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
