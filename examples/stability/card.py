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
    goal = 0.1 * curve[0] + 0.9 * levels(curve)["last"]
    below = [place for place, value in enumerate(curve) if value < goal]
    return min(below[-1] + 1, len(curve) - 1) if below else 0


def levels(curve: list[float]) -> dict[str, float]:
    """Of a curve: its first point, and the means of its second and last quarter."""
    quarter = len(curve) // 4
    return {"first": curve[0], "second": mean(curve[quarter : 2 * quarter]), "last": mean(curve[-quarter:])}


def facts(result: dict[str, Any]) -> dict[str, Any]:
    """A row of the card's table."""
    curve = [point["mean"] for point in result["points"]]
    basis = levels(curve)
    second, last = basis["second"], basis["last"]
    mixing = [point["mixing_mean"] for point in result["points"]]
    lowest = min(range(len(curve)), key=curve.__getitem__)
    layers = list(result["points"][-1]["stability"].values())
    third = len(layers) // 3
    steady, mixing_steady = (result["points"][risen(each)]["step"] for each in (curve, mixing))
    return {
        **result,
        **basis,
        "lowest": curve[lowest],
        "lowest at": result["points"][lowest]["step"],
        "fell": lowest > 0,
        "closed": (last - second) / (1 - second),
        "settling": (last - second) / (1 - second) >= SETTLING,
        "front": mean(layers[:third]),
        "back": mean(layers[-third:]),
        "mixing": levels(mixing),
        "steady": steady,
        "mixing steady": mixing_steady,
        "basis first": steady < mixing_steady,
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
