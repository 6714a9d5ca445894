"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each method, in the order of the runs."""
    found = []
    for name in dict.fromkeys(run["method"] for run in record["runs"]):
        runs = sorted((run for run in record["runs"] if run["method"] == name), key=lambda run: run["seed"])
        tests = [run["test"] for run in runs]
        edge = runs[0]["rate"] in (min(record["rates"]), max(record["rates"]))
        found.append({**runs[0], "tests": tests, "mean": mean(tests), "spread": max(tests) - min(tests), "edge": edge})
    return found


def verdict(rows: list[dict[str, Any]]) -> str:
    """Ours at LoRA's count of parameters against the best of PEFT's methods, and what a tenth of them costs."""
    theirs = [row for row in rows if row["method"] != "full" and "OIALR" not in row["method"]]
    best = min(theirs, key=lambda row: row["mean"])
    ours = next(row for row in rows if row["method"].endswith("parameters of LoRA"))
    tenth = next(row for row in rows if "a tenth" in row["method"])
    with_bases = next(row for row in rows if row["method"].endswith("file of LoRA"))
    behind = ours["mean"] - best["mean"]
    spread = max(ours["spread"], best["spread"])
    word = "ahead of" if behind < 0 else "behind"
    reached = "beyond" if abs(behind) > spread else "within"
    return (
        f"At LoRA's count of trainable parameters OIALR ends {abs(behind):.3f} nats {word} the best of PEFT's,\n"
        f"{best['method']}, {reached} the spread over the seeds ({spread:.3f}). A tenth of the parameters costs\n"
        f"{tenth['mean'] - ours['mean']:.3f} nats against all of them; the file of LoRA with bases, "
        f"{with_bases['mean'] - ours['mean']:.3f}."
    )


def render(folder: Path) -> str:
    """The text of README.md from a folder of results."""
    record = json.loads((folder / "plays.json").read_text())
    rows = rows_of(record)
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(rows=rows, record=record, verdict=verdict(rows))


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
