"""README and docs/: generated parts are current, links lead somewhere, the site builds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.pages import PAGES, ROOT, anchors, fences, links
from tools.pages import pages
from tools.results import RESULTS

LANGUAGES = {"python", "sh", "text"}


def test_tables_pictures_and_options_are_what_would_be_written_now() -> None:
    """Catches an edited table, a new measurement or option without `python -m tools.pages`."""
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name} is stale: run `python -m tools.pages`"


def test_each_table_stands_on_a_page() -> None:
    """Catches a table whose markers were lost in an edit, so that nothing renews it."""
    marked = re.findall(r"<!-- table: (\w+) -->", "".join(p.read_text() for p in PAGES))
    assert sorted(marked) == ["beside", "contestants", "loaders", "methods", "speed", "tree"]


# docs/methods.md has a test of its own
@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "methods.md"], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or "." in anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page: Path) -> None:
    """python and sh are run by test_docs_run; text is for show."""
    assert {language for language, _ in fences(page)} <= LANGUAGES


def test_the_navigation_has_every_page() -> None:
    nav = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(nav) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_results_are_dated() -> None:
    """What tables cite. Catches a record of another origin than `fastcat bench`."""
    for path in RESULTS.glob("*.json"):
        assert '"date": "20' in path.read_text()[:30] or path.stem == "cpu-learning"


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "api.html").read_text().count("doc-object-name") > 10
    fetched = re.findall(
        r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"',
        "".join(page.read_text() for page in tmp_path.glob("*.html")),
    )
    assert not fetched
