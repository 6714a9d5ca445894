"""The card of the four horizons, from results.json beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).resolve().parent
HORIZONS = (96, 192, 336, 720)
AIM = {"trained": 0.2, "file": 0.5}  # at most, of dense; and an error of dense's at most, or within the spread
AUTHORS = {  # means over three runs in their CSV files, the best epoch of each; they have no others
    192: {"authors' dense, width 512": 0.2741, "authors' OIALR, width 512": 0.2684},
    720: {"authors' dense, width 512": 0.4201, "authors' OIALR, width 512": 0.4201},
}


def read(card: Path) -> dict[str, Any]:
    """{"trivial": by horizon, "runs": [...]} as far as it has been run."""
    path = card / "results.json"
    return json.loads(path.read_text()) if path.exists() else {"trivial": {}, "runs": []}


def row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds."""
    errors = [run["test_mse"] for run in runs]
    figures = {name: mean(run[name] for run in runs) for name in ("test_mae", "trainable_percent", "compressed_bytes")}
    spread = stdev(errors) if len(errors) > 1 else None
    return {**figures, "mean": mean(errors), "spread": spread, "errors": errors, "seeds": len(runs)}


def verdict(name: str, row: dict[str, Any], dense: dict[str, Any]) -> str:
    """What the aims say to a row: error, share in training, file, and why it is not reached where it is not."""
    trained, file = row["trainable_percent"] / 100, row["compressed_bytes"] / dense["compressed_bytes"]
    pooled = mean((found["spread"] or 0.0) ** 2 for found in (row, dense)) ** 0.5
    where = "within" if abs(row["mean"] - dense["mean"]) <= pooled else "beyond"
    misses = [
        *(["error"] if row["mean"] > dense["mean"] + pooled else []),
        *(["share in training"] if trained > AIM["trained"] else []),
        *(["file"] if file > AIM["file"] else []),
    ]
    few = [f"{row['seeds']} seed(s) of both, a pointer and no result"] if row["seeds"] < 3 else []
    words = ["missed by " + ", ".join(misses) if misses else "reached", *few]
    spread = "" if row["spread"] is None else f" ({where} the pooled spread, {pooled:.4f})"
    return (
        f"{name}: {row['mean'] / dense['mean']:.3f} of dense{spread}, "
        f"{trained:.0%} trains at the end, file {file:.2f} of dense's: {'; '.join(words)}."
    )


def skill(rows: dict[str, Any], trivial: dict[str, Any]) -> str:
    """Who beats the mean of the context."""
    level = trivial["context mean"]["mse"]
    better = [name for name, row in rows.items() if row and row["mean"] <= level]
    if not better:
        return "No model beats the mean of the context here."
    return f"At or below the mean of the context: {'; '.join(better)}."


def runs_of(results: dict[str, Any], width: int, horizon: int, method: str) -> dict[int, dict[str, Any]]:
    """{seed: the run}, in the order of the seeds."""
    key = {"method": method, "horizon": horizon, "width": width}
    runs = [run for run in results["runs"] if {name: run[name] for name in key} == key]
    return {run["seed"]: run for run in sorted(runs, key=lambda run: run["seed"])}


def beside_dense(
    results: dict[str, Any], width: int, horizon: int, method: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The rows of a method and of dense training over the seeds that both have; None without any."""
    own, dense = (runs_of(results, width, horizon, name) for name in (method, "dense"))
    both = [seed for seed in own if seed in dense]
    return (row_of([own[seed] for seed in both]), row_of([dense[seed] for seed in both])) if both else None


def section(results: dict[str, Any], width: int, horizon: int, methods: Iterable[str]) -> dict[str, Any]:
    """A table of the card and what is said under it."""
    runs = {method: list(runs_of(results, width, horizon, method).values()) for method in methods}
    rows: dict[str, Any] = {method: row_of(found) if found else None for method, found in runs.items()}
    trivial, lines = results["trivial"].get(str(horizon), {}), []
    if rows["dense"]:
        pairs = {name: beside_dense(results, width, horizon, name) for name in rows if name != "dense"}
        lines = [verdict(name, *pair) for name, pair in pairs.items() if pair]
        lines.append(skill(rows, trivial))
    row = {"width": width, "horizon": horizon, "rows": rows, "lines": lines, "trivial": trivial}
    return {**row, "authors": AUTHORS.get(horizon, {})}


def render(card: Path, methods: Iterable[str]) -> str:
    """The card; rows that were not run are marked."""
    results = read(card)
    tables = [section(results, width, horizon, methods) for width in (128, 512) for horizon in HORIZONS]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("horizons.md.jinja").render(tables=tables, runs=results["runs"])
