"""Figures from traces and measurements. The only place that needs matplotlib (extra `plots`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..training.trace import read_trace


def plot_ranks(trace: str | os.PathLike, out: str | os.PathLike) -> None:
    """Draw the rank of every layer over the optimizer steps of a trace, and save it to `out` (png, svg or pdf).

    One grey line per layer and the mean in colour, as shares of min(out, in). Traces of version 0.1.0 do not hold it;
    there it is the rank before the first update.

    Raises:
        ValueError: the trace holds no update.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    updates = read_trace(trace)
    if not updates:
        raise ValueError(f"The trace {os.fspath(trace)} holds no update; was the run shorter than the first one?")
    start = {name: updates[0]["changed"].get(name, [rank])[0] for name, rank in updates[0]["ranks"].items()}
    full = updates[0].get("full_ranks") or start
    steps = [0, *(update["step"] for update in updates)]
    shares = {n: [start[n] / rank, *(u["ranks"][n] / rank for u in updates)] for n, rank in full.items()}
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for values in shares.values():
        axes.step(steps, values, where="post", color="0.75", linewidth=0.8)
    mean = [sum(values) / len(shares) for values in zip(*shares.values(), strict=True)]
    axes.step(steps, mean, where="post", color="tab:blue", linewidth=2, label=f"mean of {len(shares)} layers")
    axes.set(xlabel="optimizer step", ylabel="share of the full rank", ylim=(0, 1.05))
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def plot_stability(path: str | os.PathLike, out: str | os.PathLike) -> None:
    """Draw what a `StabilityCallback` wrote to `path`, and save it to `out` (png, svg or pdf).

    Left a heat map of layers, in the model's order, over steps; right the mean of all layers.

    Raises:
        ValueError: the file holds no checkpoint.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = json.loads(Path(path).read_text())["points"]
    if not points:
        raise ValueError(f"{os.fspath(path)} holds no checkpoint; was the run shorter than the first one?")
    steps, layers = [point["step"] for point in points], list(points[0]["stability"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    image = left.imshow(
        [[point["stability"][layer] for point in points] for layer in layers],
        aspect="auto",
        extent=(0, steps[-1], len(layers) - 0.5, -0.5),
        vmax=1.0,
    )
    figure.colorbar(image, ax=left)
    left.set(xlabel="optimizer step", ylabel="layer, first on top")
    right.plot(steps, [point["mean"] for point in points], marker=".")
    right.set(xlabel="optimizer step", ylabel=f"mean of {len(layers)} layers", ylim=(None, 1.0))
    figure.savefig(out, dpi=150)
    plt.close(figure)
