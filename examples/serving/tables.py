"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent


def render(folder: Path) -> str:
    """The README for a folder of results."""
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"two": "{:.2f}".format, "megabytes": lambda count: f"{count / 1e6:,.0f}"}
    return environment.get_template("README.md.jinja").render(results)


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
