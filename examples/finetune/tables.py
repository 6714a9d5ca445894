"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent
MATCHED = "OIALR residual, parameters of LoRA"
OURS = (MATCHED, "OIALR residual, file of LoRA", "OIALR residual, a tenth of LoRA's parameters")
SMALLER = ("OIALR, defaults", "OIALR, target_size", "OIALR, target_size, sigma alone")
OTHERS = ("from scratch", "head alone", "full")
UNITS = {"plays": "nats", "pictures": "points", "sentences": "points"}


def sign(task: str) -> int:
    """1 where more is better."""
    return -1 if task == "plays" else 1


def rows_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{method: its row}, in the order of the runs: all seeds at the rate that validation preferred at the first."""
    found = {}
    for name in dict.fromkeys(run["method"] for run in record["runs"]):
        runs = [run for run in record["runs"] if run["method"] == name]
        tried = [run for run in runs if run["seed"] == record["seeds"][0] and run["rate"] in record["rates"]]
        best = max(tried, key=lambda run: (sign(record["task"]) * run["validation"], -run["rate"]))
        chosen = sorted((run for run in runs if run["rate"] == best["rate"]), key=lambda run: run["seed"])
        if [run["seed"] for run in chosen] != record["seeds"]:
            continue  # its seeds are still to run
        tests, reloads = [run["test"] for run in chosen], [run["reload"] for run in chosen if "reload" in run]
        edge = best["rate"] in (min(record["rates"]), max(record["rates"]))
        row = {**best, "tests": tests, "mean": mean(tests), "spread": max(tests) - min(tests), "edge": edge}
        found[name] = {**row, "reload": max(reloads) if reloads else None}
    return found


def task_of(record: dict[str, Any]) -> dict[str, Any]:
    """The tables of one task, and what they say."""
    rows, better = rows_of(record), sign(record["task"])
    theirs = [row for name, row in rows.items() if name not in (*OURS, *SMALLER, *OTHERS)]
    best, ours = max(theirs, key=lambda row: better * row["mean"]), rows[MATCHED]
    ahead, spread = better * (ours["mean"] - best["mean"]), max(ours["spread"], best["spread"])
    full = rows["full"]["mean"]
    gains = {name: better * (full - rows[name]["mean"]) for name in OTHERS[:2] if name in rows}
    costs = {name: better * (ours["mean"] - rows[name]["mean"]) for name in OURS[1:] if name in rows}
    return {
        "name": record["task"],
        "unit": UNITS[record["task"]],
        "record": record,
        "rows": [row for name, row in rows.items() if name not in SMALLER],
        "smaller": [rows[name] for name in SMALLER if name in rows],
        "best": best,
        "ahead": ahead,
        "spread": spread,
        "holds": ahead >= -spread,
        "gains": gains,
        "costs": costs,
    }


def render(folder: Path) -> str:
    """The text of README.md from a folder of results."""
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    tasks = {name: task_of(records[name]) for name in UNITS if name in records}
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(
        tasks=tasks, holds=sum(t["holds"] for t in tasks.values())
    )


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
