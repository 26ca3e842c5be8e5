"""docs/methods.md tells what the code's docstrings tell now, of everything that there is."""

import math
import re

from markdown_it import MarkdownIt

from fastcat.collaborations import COLLABORATIONS
from fastcat.objectives import METHODS
from tests.methods_page import PAGE, anchor, read_errors, render, rounded_up, subjects

TEXT = PAGE.read_text()
AGAIN = f"{PAGE.name} is stale: write it again by `python -m tests.methods_page`"


def test_the_page_is_what_would_be_written_now_but_for_the_errors() -> None:
    """Catches an edited page, and a new method, formula, recipe or tolerance without a new page."""
    assert render(read_errors(TEXT)) == TEXT, AGAIN


def test_everything_is_measured_and_within_what_is_asserted() -> None:
    errors = read_errors(TEXT)
    for row in subjects():
        both = row.name in {*METHODS, *COLLABORATIONS}
        for dtype in ("float64", "float32") if both else ("float64",):
            assert (row.name, dtype) in errors, f"{row.name} in {dtype}: {AGAIN}"
        for dtype, tolerance in row.tolerances.items():
            assert float(errors.get((row.name, dtype), 0)) <= tolerance, row.name


def test_errors_are_rounded_up() -> None:
    assert [rounded_up(x) for x in (0.0, 1e-12, 1.1e-12, 9e-7)] == ["0", "1e-12", "1e-11", "1e-6"]
    assert float(rounded_up(math.pi)) == 10


def test_the_page_renders() -> None:
    """Catches a formula that Markdown reads as emphasis, and one that breaks a table or a line."""
    tokens = MarkdownIt("commonmark").enable("table").parse(TEXT)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"em_open", "strong_open", "html_inline", "image"} & set(inline)
    assert not {"ordered_list_open", "html_block", "blockquote_open"} & {t.type for t in tokens}
    for row in re.findall(r"(?:^\|.*\n)+", TEXT, re.M):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in row.splitlines()}
        assert len(cells) == 1, row
    formulas = "".join(token.content for token in tokens if token.type == "code_block")
    for row in subjects():
        for line in re.findall(r"^    .*$", row.text, re.M):
            assert line.strip() in formulas
    assert formulas.count("L = ") >= len(METHODS) - 2


def test_its_links_lead_somewhere() -> None:
    headings = {anchor(heading) for heading in re.findall(r"^### (.*)$", TEXT, re.M)}
    assert headings >= set(re.findall(r"\]\(#(.*?)\)", TEXT))
    files = re.findall(r"\]\((\.\./.*?)\)", TEXT)
    assert len(files) == len(subjects())
    assert all((PAGE.parent / file).is_file() for file in files)
