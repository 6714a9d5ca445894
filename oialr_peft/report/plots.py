"""Figures of runs and measurements. The only place that needs matplotlib (extra `plots`)."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..training.trace import read_trace
from .run import Run, read_run


if TYPE_CHECKING:
    from collections.abc import Callable


def plot_ranks(trace: str | os.PathLike, out: str | os.PathLike) -> None:
    """Draw the rank of every layer over the optimizer steps of a trace, and save it to `out` (png, svg or pdf).

    `trace` may be a run's folder: then it is the one that `read_run` finds there.

    One grey line per layer and the mean in colour, as shares of min(out, in). Traces of version 0.1.0 do not hold it;
    there it is the rank before the first update.

    Raises:
        ValueError: there is no trace, or it holds no update.
    """
    updates = read_trace(trace) if os.path.isfile(trace) else read_run(trace).updates
    if not updates:
        raise ValueError(f"The trace {os.fspath(trace)} holds no update; was the run shorter than the first one?")
    _save(lambda axes: draw_ranks(axes, updates), out)


def plot_stability(path: str | os.PathLike, out: str | os.PathLike) -> None:
    """Draw what a `StabilityCallback` wrote to `path`, and save it to `out` (png, svg or pdf).

    Left a heat map of the basis' stability of layers, in the model's order, over steps; right the means over all
    layers, of the basis and, where the file has it, of the mixing.

    Raises:
        ValueError: the file holds no checkpoint.
    """
    plt = _pyplot()
    points = json.loads(Path(path).read_text())["points"]
    if not points:
        raise ValueError(f"{os.fspath(path)} holds no checkpoint; was the run shorter than the first one?")
    steps = [point["step"] for point in points]
    layers = list(dict.fromkeys(layer for point in points for layer in point["stability"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    image = left.imshow(
        [[point["stability"].get(layer, float("nan")) for point in points] for layer in layers],
        aspect="auto",
        extent=(0, steps[-1], len(layers) - 0.5, -0.5),
        vmax=1.0,
    )
    figure.colorbar(image, ax=left)
    left.set(xlabel="optimizer step", ylabel="layer, first on top")
    for name, key in {"basis": "mean", "mixing": "mixing_mean"}.items():
        right.plot(steps, [point.get(key, float("nan")) for point in points], marker=".", label=name)
    right.set(xlabel="optimizer step", ylabel=f"mean of {len(layers)} layers", ylim=(None, 1.0))
    right.legend(frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def figure_of(draw: Callable[[Any], None], height: float = 3.0) -> str:
    """What `draw` puts on axes, as an SVG element that stands in a page."""
    text = io.StringIO()
    _save(draw, text, height)
    return text.getvalue()[text.getvalue().index("<svg") :]


def draw_ranks(axes: Any, updates: list[dict]) -> None:
    """The rank of every layer, and their mean, as shares of the full rank."""
    start = {name: updates[0]["changed"].get(name, [rank])[0] for name, rank in updates[0]["ranks"].items()}
    full = updates[0].get("full_ranks") or start
    steps = [0, *(update["step"] for update in updates)]
    shares = {n: [start[n] / rank, *(u["ranks"][n] / rank for u in updates)] for n, rank in full.items()}
    for values in shares.values():
        axes.step(steps, values, where="post", color="0.75", linewidth=0.8)
    mean = [sum(values) / len(shares) for values in zip(*shares.values(), strict=True)]
    axes.step(steps, mean, where="post", color="tab:blue", linewidth=2, label=f"mean of {len(shares)} layers")
    axes.set(xlabel="optimizer step", ylabel="share of the full rank", ylim=(0, 1.05))
    axes.legend(frameon=False)


def draw_layers(axes: Any, updates: list[dict]) -> None:
    """A row per layer in the order of the model, a column per update, dark where the rank is high."""
    full = updates[0].get("full_ranks") or updates[0]["ranks"]
    shares = [[update["ranks"][name] / rank for update in updates] for name, rank in full.items()]
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="share of the full rank")
    axes.set_xticks(range(len(updates)), [update["step"] for update in updates], rotation=90, fontsize=7)
    axes.set_yticks(range(len(full)), list(full), fontsize=7)
    axes.locator_params(axis="x", nbins=20)
    axes.set_xlabel("update at optimizer step")


def draw_spectra(axes: Any, updates: list[dict]) -> None:
    """Singular values as shares of the largest, over their places: a line per layer when first and when last seen."""
    seen = {name: update for update in reversed(updates) for name in update.get("spectra", {})}
    last = {name: update for update in updates for name in update.get("spectra", {})}
    for found, color, label in ((seen, "0.75", "at its first update"), (last, "tab:blue", "at its last")):
        for number, (name, update) in enumerate(found.items()):
            values, kept = update["spectra"][name], update["ranks"][name] / update["full_ranks"][name]
            places = [kept * place / max(1, len(values) - 1) for place in range(len(values))]
            shares = [value / (values[0] or 1.0) for value in values]
            axes.plot(places, shares, color=color, linewidth=0.8, alpha=0.8, label=None if number else label)
    axes.set(xlabel="place in the spectrum, share of the full rank", ylabel="singular value / largest", xlim=(0, 1))
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False)


def draw_series(axes: Any, run: Run, names: dict[str, str], label: str) -> None:
    """What was logged under each of these names, with its label in the legend."""
    for key, name in names.items():
        steps, values = run.series(key)
        if steps:
            axes.plot(steps, values, marker="." if len(steps) < 40 else None, label=name)
    axes.set(xlabel="optimizer step", ylabel=label, ylim=(min(0, axes.get_ylim()[0]), None))
    if axes.get_ylim()[1] > 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)


def draw_updates(axes: Any, updates: list[dict]) -> None:
    """The largest share of a layer's energy that each update dropped, and the seconds that it took."""
    steps = [update["step"] for update in updates]
    dropped = [100 * max(update.get("dropped", {}).values(), default=0.0) for update in updates]
    axes.plot(steps, dropped, marker=".", color="tab:red")
    axes.set(xlabel="optimizer step", ylim=(0, None))
    axes.set_ylabel("most energy dropped, %", color="tab:red")
    seconds = axes.twinx()
    seconds.plot(steps, [update["seconds"] for update in updates], marker=".", color="0.5")
    seconds.set_ylabel("seconds per update", color="0.5")
    seconds.set_ylim(0, None)


def _save(draw: Callable[[Any], None], out: Any, height: float = 3.5) -> None:
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6, height), layout="constrained")
    draw(axes)
    figure.savefig(out, dpi=150, format="svg" if isinstance(out, io.StringIO) else None)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
