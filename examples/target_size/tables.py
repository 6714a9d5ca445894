"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent
TITLES = {
    "characters": "A GPT on the characters of TinyShakespeare (nats per character)",
    "pictures": "A ViT on CIFAR-10 (cross-entropy)",
}


def task_of(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of one task: a row for each rule, a column for each seed."""
    seeds = sorted(results, key=lambda result: result["seed"])
    dense = [result["dense_trained_on"] for result in seeds]
    rows = []
    for rule in dict.fromkeys(run["rule"] for run in seeds[0]["runs"]):
        losses = [next(run["test"] for run in result["runs"] if run["rule"] == rule) for result in seeds]
        rows.append({"rule": rule, "losses": losses, "mean": mean(losses), "above": mean(losses) - mean(dense)})
    held = [run["held"] for result in seeds for run in result["runs"]]
    return {
        "title": TITLES[name],
        "seeds": [result["seed"] for result in seeds],
        "dense": dense,
        "dense_mean": mean(dense),
        "rows": rows,
        "steps": (seeds[0]["dense_steps"], seeds[0]["steps"]),
        "held": (min(held), max(held)),
    }


def verdict(tasks: list[dict[str, Any]]) -> str:
    """In how many pairs of runs the joint choice ended ahead, and by how much."""
    pairs = [
        (ours, theirs)
        for task in tasks
        for ours, theirs in zip(*(_losses(task, rule) for rule in ("target_size", "cutoff per layer")), strict=True)
    ]
    ahead = sum(ours < theirs for ours, theirs in pairs)
    uniform = [
        theirs - ours
        for task in tasks
        for ours, theirs in zip(*(_losses(task, rule) for rule in ("target_size", "uniform")), strict=True)
    ]
    return (
        f"Read: chosen together, ranks ended ahead of the cutoff per layer in {ahead} of {len(pairs)} pairs of one "
        f"seed,\nand ahead of the same share everywhere in {sum(gap > 0 for gap in uniform)} of {len(uniform)}, by "
        f"{min(uniform):.4f} to {max(uniform):.4f}."
    )


def _losses(task: dict[str, Any], rule: str) -> list[float]:
    return next(row["losses"] for row in task["rows"] if row["rule"] == rule)


def render(folder: Path) -> str:
    """The README for a folder of results."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    names = dict.fromkeys(result["task"] for result in results)
    tasks = [task_of(name, [result for result in results if result["task"] == name]) for name in names]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    shares = {run["share"] for result in results for run in result["runs"]}
    facts = {"tasks": tasks, "share": max(shares), "verdict": verdict(tasks), "versions": results[0]["versions"]}
    return environment.get_template("README.md.jinja").render(facts)


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
