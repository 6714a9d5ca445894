"""Writes README.md and accuracy.png of a card from results.json beside them: `python vision_card.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).resolve().parent
TITLES = {"vit": "A mini-ViT", "resnet": "A ResNet"}
VIT = "The paper's mini-ViT (patches of 8, depth 6, 6 heads, no bias of queries, keys and values)"
RESNET = "transformers' ResNetForImageClassification with basic blocks"
FACTORED = "; its convolutions are factorised as matrices."
SHAPES = {
    ("vit", "small"): f"{VIT} at width 96 instead of 768.",
    ("vit", "medium"): f"{VIT} at width 192 instead of 768.",
    ("vit", "paper"): f"{VIT} at its size.",
    ("resnet", "small"): f"{RESNET}, two each at widths 32, 64 and 128{FACTORED}",
    ("resnet", "medium"): f"{RESNET}, two each at widths 64, 128 and 256{FACTORED}",
    ("resnet", "paper"): f"{RESNET}{FACTORED}",
}
NAMES = {"dense": "dense", "untuned": "OIALR, untuned", "tuned": "OIALR, tuned"}
# Trainable share at most, and points below dense at most: the aims.
AIMS = {"untuned": (0.31, 0.5), "tuned": (0.10, 0.0)}


def chosen_runs(record: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The runs of a method with the setting and rate that validation prefers at its first seed, by seed."""
    own = [run for run in record["runs"] if run["method"] == method]
    if not own:
        return []
    best = max((run for run in own if run["seed"] == own[0]["seed"]), key=lambda run: run["validation"])
    alike = [run for run in own if (run["setting"], run["rate"]) == (best["setting"], best["rate"])]
    return sorted(alike, key=lambda run: run["seed"])


def row_of(method: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table, accuracies in percent."""
    shares = {name: mean(run[name] for run in runs) for name in ("held_share", "trained_share", "bytes")}
    by_seed = {run["seed"]: 100 * run["test"] for run in runs}
    right = list(by_seed.values())
    spread = stdev(right) if len(right) > 1 else None
    found = {"by_seed": by_seed, "right": right, "mean": mean(right), "spread": spread}
    return {**runs[0], **shares, **found, "name": NAMES[method]}


def verdict(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the aims say to the figures."""
    few = len(rows["dense"]["right"]) < 3
    lines = ["Fewer than three seeds: the figures are a pointer, no result."] if few else []
    for method, (share, points) in AIMS.items():
        if method in rows:
            row, dense = rows[method], rows["dense"]["by_seed"]
            gaps = [dense[seed] - right for seed, right in row["by_seed"].items()]  # of one start and the same batches
            behind = mean(gaps)
            word = "reached" if behind <= points and row["trained_share"] <= share else "missed"
            lines.append(
                f"{row['name']}: {-behind:+.2f} points against dense with {row['trained_share']:.1%} of the dense "
                f"values training at the end (aim: at least {0 - points:+.1f} at {share:.0%}): {word}; behind in "
                f"{sum(gap > 0 for gap in gaps)} of {len(gaps)} pairs of one seed."
            )
    return lines


def multiples(record: dict[str, Any], first: int) -> list[float]:
    """Of dense training's chosen rate, those that were tried for the tuned setting."""
    dense = chosen_runs(record, "dense")[0]["rate"]
    tried = (r["rate"] for r in record["runs"] if (r["method"], r["seed"]) == ("tuned", first))
    return sorted({rate / dense for rate in tried})


def render(folder: Path) -> str:
    """The card of a folder's results."""
    record = json.loads((folder / "results.json").read_text())
    found = {method: chosen_runs(record, method) for method in NAMES}
    rows = {method: row_of(method, runs) for method, runs in found.items() if runs}
    first = min(run["seed"] for run in record["runs"])
    rates = [run["rate"] for run in record["runs"] if (run["method"], run["seed"]) == ("dense", first)]
    facts = {
        "title": TITLES[record["plan"]["model"]],
        "shape": SHAPES[record["plan"]["model"], record["plan"]["size"]],
        "folder": folder.name,
        "rows": list(rows.values()),
        "tried": [run for run in record["runs"] if run["seed"] == first],
        "rates": rates,
        "edge": rows["dense"]["rate"] in (min(rates), max(rates)),
        "settings": list(dict.fromkeys(run["setting"] for run in record["runs"] if run["method"] == "tuned")),
        "multiples": multiples(record, first),
        "verdict": verdict(rows),
    }
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("vision_card.md.jinja").render(**record, **facts)


def plot(folder: Path) -> None:
    """Draws test accuracy over the share that trains at the end, a point for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    record = json.loads((folder / "results.json").read_text())
    figure, panel = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for method, name in NAMES.items():
        runs = chosen_runs(record, method)
        shares, right = ([100 * run[figure] for run in runs] for figure in ("trained_share", "test"))
        panel.scatter(shares, right, label=name)
    panel.set(xlabel="values that train at the end, % of dense", ylabel="test accuracy, %", xscale="log")
    panel.legend(fontsize="small")
    figure.savefig(folder / "accuracy.png", dpi=100)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    (target / "README.md").write_text(render(target))
    plot(target)
