"""For mkdocs: links of the pages to files outside of docs/ lead to the repository."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"(\]\()\.\./([^)#]+)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """`](../fastcat/x.py` as a link to the repository's main branch."""
    root = Path(config.config_file_path).parent

    def to_repository(link: re.Match[str]) -> str:
        kind = "tree" if (root / link[2]).is_dir() else "blob"
        return f"{link[1]}{config.repo_url}/{kind}/main/{link[2]}"

    return OUTSIDE.sub(to_repository, markdown)
