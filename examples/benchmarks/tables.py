"""Writes README.md beside this file, and the table in docs/speed.md, from the results files.

python examples/benchmarks/tables.py
"""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "speed.md"
MARKED = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)", re.DOTALL)


def main() -> None:
    """Renders the two templates."""
    results = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "results").glob("*.json")}
    (FOLDER / "README.md").write_text(render("README.md.jinja", results))
    page = PAGE.read_text()
    if not MARKED.search(page):
        raise ValueError(f"{PAGE.name}: no place between <!-- benchmarks --> and <!-- /benchmarks -->; add it.")
    table = render("summary.md.jinja", results)
    PAGE.write_text(MARKED.sub(lambda match: match[1] + table + match[2], page))


def render(template: str, results: dict[str, Any]) -> str:
    """The template's text with the results by file name; a figure that is not there is an error."""
    environment = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"two": "{:.2f}".format, "percent": "{:.0%}".format, "megabytes": megabytes}
    environment.filters["by_name"] = lambda rows, key: {row[key]: row for row in rows}
    return environment.get_template(template).render(results)


def megabytes(count: int) -> str:
    """Bytes in millions."""
    return f"{count / 1e6:,.0f}" if count >= 1e7 else f"{count / 1e6:,.1f}"


if __name__ == "__main__":
    main()
