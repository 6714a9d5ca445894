"""A run as one HTML file that needs nothing else: `oialr report RUN`."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ..files import replace_file
from ..units import short
from .plots import draw_layers, draw_ranks, draw_series, draw_spectra, draw_updates, figure_of
from .run import Run, read_run


_CAPTIONS = {
    "Ranks": "What a layer can still do: the number of its directions, as a share of all that its shape allows.",
    "Ranks, layer by layer": "The same, a row per layer, the first layer on top.",
    "Spectra": "How much each direction counts, a line per layer. It ends where the layer was cut.",
    "Updates": "What the hardest cut of an update took away, and how long the update took.",
    "Size": "Of the layers alone; embeddings and the like are not in it.",
}


def write_report(path: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write a page about the run at `path` (`read_run`) to `out`: loss, ranks, size and time, with a table of layers.

    Raises:
        ValueError: the run left no update to report on.
    """
    replace_file(out, report_page(read_run(path)).encode())


def report_page(run: Run) -> str:
    """The page as text. Figures are inline SVG, so it is read without network."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("page.html").render(
        name=run.name, facts=_facts(run), figures=_figures(run), captions=_CAPTIONS, layers=_layers(run.updates)
    )


def _facts(run: Run) -> dict[str, str]:
    """What is told in a line each at the top."""
    facts: dict[str, str] = {}
    if steps := [entry["step"] for entry in (*run.logs, *run.updates)]:
        facts["Optimizer steps"] = f"{max(steps):,}"
    speeds = ("_runtime", "_per_second")
    measured = sorted({key for log in run.logs for key in log if key.startswith("eval_") and not key.endswith(speeds)})
    for key in ("loss", *measured):
        if (values := run.series(key)[1]) and isinstance(values[-1], (int, float)):
            name = key.removeprefix("eval_").replace("_", " ")
            facts[f"Last {'training' if key == 'loss' else 'evaluation'} {name}"] = f"{values[-1]:.4g}"
    if values := run.series("train_runtime")[1]:
        facts["Time of training"] = f"{values[-1]:,.0f} s"
    if run.updates:
        last, seconds = run.updates[-1], [update["seconds"] for update in run.updates]
        facts["Updates"] = f"{len(seconds)}, {sum(seconds):.1f} s in all"
        facts["Parameters that train in the layers"] = f"{last.get('trainable_parameters', 0):,}"
        if dense := last.get("dense_parameters"):
            share = last["stored_parameters"] / dense
            facts["Compressed, the layers would be"] = f"{share:.0%} of their {dense:,} dense parameters"
        if dense := last.get("dense_bytes"):
            small = last["compressed_bytes"]
            facts["Compressed, the model would be"] = f"{short(small)}, {small / dense:.0%} of {short(dense)}"
        if full := last.get("full_ranks"):
            shares = [last["ranks"][name] / rank for name, rank in full.items()]
            facts["Rank at the end"] = f"{sum(shares) / len(shares):.0%} of the full one, mean of {len(shares)} layers"
    return facts


def _figures(run: Run) -> dict[str, str]:
    """SVG by heading, of what the run has recorded."""
    figures = {}
    if run.series("loss")[0] or run.series("eval_loss")[0]:
        names = {"loss": "training", "eval_loss": "evaluation"}
        figures["Loss"] = figure_of(lambda axes: draw_series(axes, run, names, "loss"))
    if run.updates:
        height = max(3.0, 0.8 + 0.16 * len(run.updates[0]["ranks"]))
        figures["Ranks"] = figure_of(lambda axes: draw_ranks(axes, run.updates))
        figures["Ranks, layer by layer"] = figure_of(lambda axes: draw_layers(axes, run.updates), height)
        if any(update.get("spectra") for update in run.updates):
            figures["Spectra"] = figure_of(lambda axes: draw_spectra(axes, run.updates))
        figures["Updates"] = figure_of(lambda axes: draw_updates(axes, run.updates))
    else:
        names = {f"oialr/{which}_rank": which for which in ("max", "mean", "min")}
        figures["Ranks"] = figure_of(lambda axes: draw_series(axes, run, names, "rank"))
    if run.series("oialr/trainable_parameters")[0]:
        size = {"oialr/trainable_parameters": "that train", "oialr/stored_parameters": "that save_compressed keeps"}
        figures["Size"] = figure_of(lambda axes: draw_series(axes, run, size, "parameters of the OIALR layers"))
    return figures


def _layers(updates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per layer: its ranks at the end and in full, and the energy that its cuts dropped, one after another."""
    if not updates:
        return []
    full = updates[-1].get("full_ranks", {})
    return [
        {
            "name": name,
            "rank": rank,
            "full": full.get(name),
            "dropped": 1 - math.prod(1 - update.get("dropped", {}).get(name, 0.0) for update in updates),
        }
        for name, rank in updates[-1]["ranks"].items()
    ]
