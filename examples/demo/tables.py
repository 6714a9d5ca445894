"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from show import table


HERE = Path(__file__).parent


def screen(run: dict[str, Any]) -> str:
    """The table that ends a run, as text."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table({name: run[name] for name in ("dense", "OIALR")}, run["trivial"]))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def render(folder: Path) -> str:
    """The README for a folder of results, one file a seed."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("seed_*.json"))]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(runs=runs, screen=screen(runs[0]))


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
