"""For mkdocs: links to files outside of docs/ lead to the repository, where that is known."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """`[text](../fastcat/x.py)` as a link to the repository's main branch, or as text alone."""
    root = Path(config.config_file_path).parent

    def to_repository(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        if not config.repo_url:
            return text
        kind = "tree" if (root / path).is_dir() else "blob"
        return f"[{text}]({config.repo_url}/{kind}/main/{path}{anchor})"

    return OUTSIDE.sub(to_repository, markdown)
