"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


HERE = Path(__file__).parent
TITLES = {
    "characters": "A GPT on the characters of TinyShakespeare, Muon (nats per character)",
    "pictures": "A ViT on CIFAR-10, AdamW (cross-entropy)",
}
NAMES = {"none": "dense to the end", "auto": '`delay="auto"`'}
BIGRAM = json.loads((HERE.parent / "quality" / "results" / "characters" / "trivial.json").read_text())["loss"]
TRIVIAL = {
    "characters": ("each character from the one before it, by counts", BIGRAM),
    "pictures": ("every class as likely", math.log(10)),
}
Results = list[dict[str, Any]]


def task_of(name: str, results: Results) -> dict[str, Any]:
    """The table of one task: a row for each delay, a column for each seed."""
    seeds = sorted({run["seed"] for run in results})
    by_delay = {delay: {r["seed"]: r for r in results if r["delay"] == delay} for delay in _delays(results)}
    rows = [_row(delay, runs, seeds) for delay, runs in by_delay.items()]
    fixed = {delay: runs for delay, runs in by_delay.items() if delay not in NAMES}
    best = min(fixed, key=lambda delay: fixed[delay][0]["validation"])
    return {
        "title": TITLES[name],
        "seeds": seeds,
        "rows": rows,
        "trivial": TRIVIAL[name],
        "steps": results[0]["steps"],
        "best": best,
        "verdict": _verdict(fixed[best], by_delay.get("auto", {})),
        "left": _left(by_delay.get("auto", {}), results[0]["steps"]),
    }


def _delays(results: Results) -> list[str]:
    """Dense first, then the shares, then what goes by bases."""
    order = {"none": 0, "auto": 2}
    return sorted({run["delay"] for run in results}, key=lambda delay: (order.get(delay, 1), delay))


def _row(delay: str, runs: dict[int, dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    losses = [runs[seed]["validation"] if seed in runs else None for seed in seeds]
    return {
        "name": NAMES.get(delay, f"`delay={delay}`"),
        "losses": losses,
        "mean": mean(run["validation"] for run in runs.values()) if len(runs) == len(seeds) else None,
        "test": mean(run["test"] for run in runs.values()) if len(runs) == len(seeds) else None,
    }


def _verdict(best: dict[int, dict[str, Any]], auto: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Auto less the best share, seed by seed; None where auto has no run."""
    both = sorted(best.keys() & auto.keys())
    if not both:
        return None
    gaps = [auto[seed]["validation"] - best[seed]["validation"] for seed in both]
    return {"gap": mean(gaps), "gaps": gaps}


def _left(auto: dict[int, dict[str, Any]], steps: int) -> dict[str, float] | None:
    """When layers left, as shares of the run: the first, the mean, the last."""
    shares = [step / steps for run in auto.values() for step in run["left"].values()]
    return {"first": min(shares), "mean": mean(shares), "last": max(shares)} if shares else None


def render(folder: Path) -> str:
    """The README for a folder of results."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]
    tasks = [task_of(name, [run for run in results if run["task"] == name]) for name in TITLES]
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(tasks=tasks, versions=results[0]["versions"])


if __name__ == "__main__":
    (HERE / "README.md").write_text(render(HERE / "results"))
