"""What the tables say, in lines: how much of a gap is closed, what a choice is worth, which rates were best."""

from __future__ import annotations

from statistics import mean
from typing import Any


MOVING = ("oialr_size", "oialr_longer", "oialr_longer_plain")  # the best first; at full rank all are one


def verdict(task: dict[str, Any], table: dict[str, Any]) -> str | None:
    """How much of the gap between plain W = A B and dense training OIALR closes; None where one of them is missing."""
    rows = table["by_method"]
    longer = next((rows[method] for method in MOVING if method in rows), None)
    if longer is None or "low_rank" not in rows:
        return None
    dense, both = rows["dense"], rows["low_rank"]
    trained, seeds = longer["trained"] / both["trained"], min(longer["seeds"], both["seeds"])
    closed = f"{1 - longer['gap'] / both['gap']:.0%} of the gap closed (half was the aim)"
    text = (
        f"{task['name']}, {table['optimizer']}, {table['steps']:,} steps, {seeds} seed(s): above dense, "
        f"{longer['name']} {longer['gap']:+.4f}, plain W = A B {both['gap']:+.4f}: "
        f"{closed if both['gap'] > 0 else 'there is no gap to close'}, {trained:.0%} of the values of A B trained in "
        "the second half."
    )
    if late := rows.get("low_rank_late"):
        text += (
            f" Plain W = A B that was dense as long as OIALR, {late['seeds']} seed(s): {late['gap']:+.4f}, "
            f"{1 - longer['gap'] / late['gap']:.0%} of it closed."
        )
    if dense["accuracy"] is None:
        return text
    points = [row["accuracy"] - dense["accuracy"] for row in (longer, both)]
    return f"{text} Test accuracy {points[0]:+.1f} points of dense (aim: at least -0.5), A B {points[1]:+.1f}."


def best_rates(task: dict[str, Any], table: dict[str, Any]) -> str:
    """The rate that validation chose for every method."""
    found = ", ".join(f"{row['lr']:g} {row['method'].replace('_', ' ')}" for row in table["rows"])
    return f"{task['name']}, {table['optimizer']}, {table['steps']:,} steps: {found}"


def worth_of_activations(rows: dict[str, dict[str, Any]]) -> float:
    """The loss that `activation_aware` saves, on average over the forms of OIALR that were run with it and without."""
    pairs = [(row, rows[f"{method}_plain"]) for method, row in rows.items() if f"{method}_plain" in rows]
    return mean(plain["validation"] - aware["validation"] for aware, plain in pairs)


def beside_the_best(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """What half and twice the best rate cost in loss, at least and at most: dense training and bases that move."""
    grids = [row["grid"] for row in rows if row["method"] in ("dense", *MOVING)]
    costs = [
        grid[rate] - min(grid.values())
        for grid in grids
        for rate in grid
        if 0.4 < rate / min(grid, key=lambda each: grid[each]) < 2.1 and grid[rate] > min(grid.values())
    ]
    return min(costs), max(costs)
