"""Writes README.md beside this file from results.json: python table.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).resolve().parent
ROWS = ("default", "default but for the tuned learning rate", "tuned")


def render() -> str:
    """The README's text."""
    results = json.loads((HERE / "results.json").read_text())
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["spread"] = lambda losses: f"{mean(losses):.3f} ± {stdev(losses):.3f}"
    rows = {name: results[name] for name in ROWS}
    default, rate, tuned = (mean(row["test"]) for row in rows.values())
    trained = [mean(row["trained"]) for row in rows.values()]
    found = {"rate_alone": rate - default, "all_else": tuned - rate, "smaller": 100 * (trained[2] / trained[1] - 1)}
    return environment.get_template("README.md.jinja").render(rows=rows, **found, **results)


if __name__ == "__main__":
    (HERE / "README.md").write_text(render())
