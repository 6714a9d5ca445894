"""curves.png: validation loss over steps and over seconds, each method at its best rate: python plots.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sweep import best_rate, read, runs_of
from tables import HERE, NAMES, OPTIMIZERS, RANK, TASKS


def curves(results: list[dict[str, Any]], optimizer: str) -> dict[str, list[list[float]]]:
    """{method: [step, seconds, loss] along its run with seed 0 at the chosen rate}."""
    found = {}
    for method in NAMES:
        if runs := runs_of(results, method, optimizer, 1.0 if method == "dense" else RANK):
            chosen = next(r for r in runs if (r["seed"], r["lr"]) == (0, best_rate(runs)))
            found[method] = chosen["curve"]
    return found


def draw(folder: Path, output: Path) -> None:
    """A row for each task and optimizer, a column for steps and one for seconds."""
    results = {name: read(folder / name) for name in TASKS}
    kinds = [(name, optimizer) for name in TASKS for optimizer in OPTIMIZERS if curves(results[name], optimizer)]
    figure, axes = plt.subplots(len(kinds), 2, figsize=(9, 2.8 * len(kinds)), squeeze=False)
    colours = dict(zip(NAMES, plt.get_cmap("tab20").colors, strict=False))  # type: ignore[attr-defined]
    for row, (name, optimizer) in zip(axes, kinds, strict=True):
        found = curves(results[name], optimizer)
        final = min(curve[-1][-1] for curve in found.values())
        for method, curve in found.items():
            steps, seconds, losses = zip(*curve, strict=True)
            for axis, along in zip(row, (steps, seconds), strict=True):
                if None not in along:  # the clock of early runs counted other work too
                    axis.plot(along, losses, label=method, color=colours[method], linewidth=1.2)
        for axis, label in zip(row, ("steps", "seconds"), strict=True):
            axis.set(xlabel=label, ylabel="validation loss", title=f"{name}, {OPTIMIZERS[optimizer]}")
            axis.set_ylim(final - 0.05, final + 0.8)
        row[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(output, dpi=75)


if __name__ == "__main__":
    draw(HERE / "results", HERE / "curves.png")
