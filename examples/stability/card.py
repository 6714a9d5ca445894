"""Writes the card of model_cards/stability from the results.json of its folders: `python card.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).resolve().parent
SETTLING = 0.25  # share of what is missing to 1 that must be closed after the first half


def risen(curve: list[float]) -> int:
    """Where a curve has made nine tenths of the way from its first point to the mean of its last quarter, for good."""
    goal = 0.1 * curve[0] + 0.9 * mean(curve[-(len(curve) // 4) :])
    below = [place for place, value in enumerate(curve) if value < goal]
    return min(below[-1] + 1, len(curve) - 1) if below else 0


def facts(result: dict[str, Any]) -> dict[str, Any]:
    """A row of the card's table."""
    curve = [point["mean"] for point in result["points"]]
    quarter = len(curve) // 4
    second, last = mean(curve[quarter : 2 * quarter]), mean(curve[-quarter:])
    mixing = [point["mixing_mean"] for point in result["points"]]
    lowest = min(range(len(curve)), key=curve.__getitem__)
    layers = list(result["points"][-1]["stability"].values())
    third = len(layers) // 3
    return {
        **result,
        "first": curve[0],
        "lowest": curve[lowest],
        "lowest at": result["points"][lowest]["step"],
        "second": second,
        "last": last,
        "fell": lowest > 0,
        "closed": (last - second) / (1 - second),
        "settling": (last - second) / (1 - second) >= SETTLING,
        "front": mean(layers[:third]),
        "back": mean(layers[-third:]),
        "mixing": {"first": mixing[0], "second": mean(mixing[quarter : 2 * quarter]), "last": mean(mixing[-quarter:])},
        "steady": result["points"][risen(curve)]["step"],
        "mixing steady": result["points"][risen(mixing)]["step"],
        "basis first": risen(curve) < risen(mixing),
    }


def render(folder: Path) -> str:
    """The card of a folder's results."""
    rows = {path.parent.name: facts(json.loads(path.read_text())) for path in sorted(folder.glob("*/results.json"))}
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["three"] = "{:.3f}".format
    return environment.get_template("card.md.jinja").render(rows=rows, settling=SETTLING)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / "README.md").write_text(render(target))
