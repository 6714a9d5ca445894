"""Links from the pages to files of the repository outside docs/: to its address where pyproject.toml has one, else to
their names. MkDocs calls `on_page_markdown` for every page."""

from __future__ import annotations

import re
from pathlib import Path


OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
REPOSITORY = re.compile(r'^Repository = "(.+)"$', re.MULTILINE)
PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page's text with links that the built site can follow."""
    address = REPOSITORY.search(PROJECT.read_text())
    there = rf"[\1]({address[1]}/blob/main/\2)" if address else r"\1 (`\2` in the repository)"
    return OUTSIDE.sub(there, markdown)
