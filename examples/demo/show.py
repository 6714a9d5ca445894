"""The one screen at the end, the picture, and the numbers as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from rich.console import Console
from rich.table import Table

from oialr_peft.report.page import write_report
from oialr_peft.report.plots import draw_ranks
from oialr_peft.training.trace import read_trace


sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from timing import environment


def show(found: dict[str, dict], trivial: dict[str, float], folder: Path, seed: int) -> None:
    """Print the table; write results.json, demo.png and the report of OIALR's run into the folder."""
    record = {**environment(), "seed": seed, "trivial": trivial, **found}
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(found, folder)
    write_report(folder / "oialr", folder / "report.html")
    Console(width=100).print(
        table(found, trivial),
        f"Picture of losses and ranks: {folder / 'demo.png'}. OIALR's run in detail: {folder / 'report.html'}.",
        f"The small model loads with ViTForImageClassification.from_pretrained('{folder / 'oialr' / 'model'}').",
        sep="\n",
    )


def table(found: dict[str, dict], trivial: dict[str, float]) -> Table:
    """Dense and OIALR beside the trivial predictors."""
    grid = Table(
        title="Handwritten digits that were not trained on (scikit-learn's, 450 of them)",
        caption="A small vision transformer from the same start, with the same batches. File: what is saved for use."
        "\nTime per step: median over the last tenth of the run. OIALR's first fifth runs at full rank.",
        caption_justify="left",
    )
    grid.add_column("")
    for heading in ("read right", "file, MB", "64 images, ms", "training step, ms"):
        grid.add_column(heading, justify="right")
    for name, accuracy in trivial.items():
        grid.add_row(name, f"{accuracy:.1%}")
    dense, small = found["dense"], found["OIALR"]
    for name, run in found.items():
        times = (f"{1000 * run[key]:.1f}" for key in ("latency", "step"))
        grid.add_row(name, f"{run['test']:.1%}", f"{run['megabytes']:.2f}", *times)
    grid.add_section()
    keys = ("test", "megabytes", "latency", "step")
    grid.add_row("OIALR / dense", *(f"{small[key] / dense[key]:.2f}" for key in keys), style="bold")
    return grid


def draw(found: dict[str, dict], folder: Path) -> None:
    """Losses of both beside the ranks of OIALR."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for name, run in found.items():
        left.plot(*zip(*run["losses"], strict=True), label=name)
    left.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
    left.legend(frameon=False)
    draw_ranks(right, read_trace(folder / "oialr" / "trace.jsonl"))
    figure.savefig(folder / "demo.png", dpi=150)
    plt.close(figure)
