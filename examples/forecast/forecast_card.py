"""Writes README.md and errors.png from the results beside them: `python forecast_card.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sweep import MODELS, best_rate


HERE = Path(__file__).resolve().parent
TITLES = {"patchtst": "PatchTST", "patchtsmixer": "PatchTSMixer"}
NAMES = {
    "dense": "dense",
    "longer": 'OIALR, `bases="longer"`',
    "longer plain": 'OIALR, `bases="longer"`, cut by singular values',
    "frozen": 'OIALR, `bases="frozen"`',
    "frozen plain": 'OIALR, `bases="frozen"`, cut by singular values',
    "low rank": "plain W = A B",
}
PUBLISHED = {"patchtst": {"ETTm2_96": 0.166, "ETTm2_192": 0.223, "ETTm2_336": 0.274, "ETTm2_720": 0.362}}
LEVEL = 1.01  # of dense's error: the aim


def chosen_runs(record: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """The runs of a method at the rate that validation prefers at its first seed, by seed."""
    own = [run for run in record["runs"] if run["method"] == method]
    if not own:
        return []
    rate = best_rate(own, method)
    return sorted((run for run in own if run["rate"] == rate), key=lambda run: run["seed"])


def row_of(method: str, runs: list[dict[str, Any]], dense: dict[int, float]) -> dict[str, Any]:
    """A line of a case's table, beside dense runs of the same seeds."""
    beside = mean(dense[run["seed"]] for run in runs)
    errors = [run["mse"] for run in runs]
    return {
        **runs[0],
        "method": method,
        "name": NAMES[method],
        "errors": errors,
        "mean": mean(errors),
        "spread": stdev(errors) if len(errors) > 1 else None,
        "mean_mae": mean(run["mae"] for run in runs),
        "dense": beside,
        "ratio": mean(errors) / beside,
        "bytes": mean(run["bytes"] for run in runs),
        "trained_share": mean(run["trained_share"] for run in runs),
    }


def grid_of(record: dict[str, Any], method: str, seed: int) -> dict[float, float]:
    """{rate: validation error} of a method at a seed."""
    own = [run for run in record["runs"] if (run["method"], run["seed"]) == (method, seed)]
    return {run["rate"]: run["validation"] for run in own}


def case_of(folder: Path, case: str) -> dict[str, Any]:
    """The table of one series and horizon; without rows where it was not run."""
    path = folder / f"{case}.json"
    empty = {"name": case, "title": case.replace("_", ", horizon "), "rows": [], "published": None}
    if not path.exists():
        return empty
    record = json.loads(path.read_text())
    runs = {method: chosen_runs(record, method) for method in NAMES}
    runs = {method: found for method, found in runs.items() if found}
    dense = {run["seed"]: run["mse"] for run in runs["dense"]}
    rows = [row_of(method, found, dense) for method, found in runs.items()]
    for row in rows:
        row["grid"] = grid_of(record, row["method"], row["seed"])
        row["edge"] = len(row["grid"]) > 1 and row["rate"] in (min(row["grid"]), max(row["grid"]))
    published = PUBLISHED.get(record["plan"]["model"], {}).get(case)
    searched = any(len(row["grid"]) > 1 for row in rows)
    found = {**empty, **record, "searched": searched, "rows": rows, "published": published}
    return {**found, "verdict": verdict(rows, record["trivial"]["linear map"]["mse"], published)}


def verdict(rows: list[dict[str, Any]], linear: float, published: float | None) -> list[str]:
    """What the aims say to the figures."""
    dense, *others = rows
    side = "below" if dense["mean"] < linear else "not below"
    lines = [] if len(dense["errors"]) > 2 else ["Fewer than three seeds: the figures are a pointer, no result."]
    lines += [f"Dense is {side} the linear map ({dense['mean']:.4f} against {linear:.4f})."]
    if published:
        level = f"{dense['mean'] / published:.3f} times the {published} of PatchTST's paper at context 336"
        lines.append(f"Dense is at {level} (aim: within 3 %).")
    for row in others:
        word = "reached" if row["ratio"] <= LEVEL else "missed"
        where = "below" if row["mean"] < linear else "not below"
        lines.append(
            f"{row['name']}: {row['ratio']:.4f} times dense at {row['held_share']:.1%} of the values held "
            f"(aim 1.01 at 25 %: {word}), {where} the linear map."
        )
    return lines


def render(folder: Path) -> str:
    """The card of a folder's results."""
    cases = [case_of(folder, case) for case in MODELS[folder.name]]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    run = [case for case in cases if case["rows"]]
    facts = {"title": TITLES[folder.name], "model": folder.name, "cases": run, "first": run[0]}
    missing = [case["title"] for case in cases if not case["rows"]]
    return environment.get_template("forecast_card.md.jinja").render(facts, missing=missing)


def plot(folder: Path) -> None:
    """Draws the validation error over the steps, the chosen rate of every method at its first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = [path for path in (folder / f"{case}.json" for case in MODELS[folder.name]) if path.exists()]
    figure, panels = pyplot.subplots(1, len(paths), figsize=(4 * len(paths), 3), squeeze=False, layout="constrained")
    for panel, path in zip(panels[0], paths, strict=True):
        record = json.loads(path.read_text())
        for method, name in NAMES.items():
            for run in chosen_runs(record, method)[:1]:
                panel.plot(*zip(*run["curve"], strict=True), label=name.replace("`", ""))
        panel.set(title=path.stem.replace("_", ", horizon "), xlabel="step", ylabel="validation MSE")
    panels[0][0].legend(fontsize="small")
    figure.savefig(folder / "errors.png", dpi=100)


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    (target / "README.md").write_text(render(target))
    plot(target)
