"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent
LEVEL = 1e-3  # of the dense loss: a smaller gap is none
TITLES = {
    "characters": "A GPT on the characters of TinyShakespeare (nats per character)",
    "pictures": "A ViT on CIFAR-10 (cross-entropy)",
}


def chosen(result: dict[str, Any], method: str, share: float) -> dict[str, Any]:
    """The run at the rate that validation prefers."""
    runs = [run for run in result["runs"] if (run["method"], run["share"]) == (method, share)]
    return min(runs, key=lambda run: run["validation"])


def against_dense(results: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Bytes of the file and time of a batch, of the dense model's; None where a result is older than they."""
    if any("bytes" not in run for run in runs):
        return {"bytes": None, "latency": None}
    dense = [chosen(result, "dense", 1.0)["bytes"] for result in results]
    kind = runs[0]["method"], runs[0]["share"]
    alike = [run for result in results for run in result["runs"] if (run["method"], run["share"]) == kind]
    return {
        "bytes": mean(run["bytes"] / whole for run, whole in zip(runs, dense, strict=True)),
        "latency": median(run["latency/dense"] for run in alike),
    }


def task_of(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of one task: a row for each share and method, a column for each seed."""
    seeds = sorted(results, key=lambda result: result["seed"])
    dense = [chosen(result, "dense", 1.0)["test"] for result in seeds]
    kinds = dict.fromkeys((run["share"], run["method"]) for run in seeds[0]["runs"] if run["method"] != "dense")
    rows = []
    for share, method in kinds:
        runs = [chosen(result, method, share) for result in seeds]
        gaps = [run["test"] - loss for run, loss in zip(runs, dense, strict=True)]
        rates = sorted({run["rate"] for run in runs})
        rows.append({"share": share, "method": method, "losses": [run["test"] for run in runs], "rates": rates})
        rows[-1] |= {"gap": mean(gaps), "range": (min(gaps), max(gaps)), **against_dense(seeds, runs)}
    return {
        "title": TITLES[name],
        "seeds": [result["seed"] for result in seeds],
        "before": [result["before"]["test"] for result in seeds],
        "dense": dense,
        "rows": rows,
        "steps": (seeds[0]["dense_steps"], seeds[0]["steps"]),
        "rates": seeds[0]["rates"],
    }


def verdict(tasks: list[dict[str, Any]]) -> list[str]:
    """Each of ours beside the SVD by activations, per task and share: mean gap over mean gap."""
    lines = []
    for task in tasks:
        for share in dict.fromkeys(row["share"] for row in task["rows"]):
            gaps = {row["method"]: row["gap"] for row in task["rows"] if row["share"] == share}
            theirs = gaps["SVD by activations"]
            ours = ", ".join(f"{name} {gaps[name] / theirs:.2f}" for name in gaps if name.startswith("OIALR"))
            if theirs < LEVEL * mean(task["dense"]):
                ours = "the SVD by activations is level with the dense model, so the task cannot tell"
            lines.append(f"{task['title'].split(' (')[0]}, {share:.0%}: {ours}")
    return lines


def render(folder: Path) -> str:
    """The README for a folder of results."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    names = dict.fromkeys(result["task"] for result in results)
    tasks = [task_of(name, [result for result in results if result["task"] == name]) for name in names]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    facts = {"tasks": tasks, "verdict": verdict(tasks), "versions": results[0]["versions"]}
    return environment.get_template("README.md.jinja").render(facts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
