"""README.md of this folder, from the results: python tables.py; the pictures by python plots.py"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from commands import runs_of_wide, sweeps
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from reading import MOVING, beside_the_best, best_rates, verdict, worth_of_activations
from sweep import best_rate, read, runs_of


HERE = Path(__file__).parent
LONGER, FROZEN, PLAIN = 'OIALR, `bases="longer"`', 'OIALR, `bases="frozen"`', ", `activation_aware=False`"
NAMES = {
    "dense": "dense",
    "oialr_size": f"{LONGER}, `delay=0.3`, `target_size` of equal values",
    "oialr_longer": f"{LONGER}, `delay=0.3`",
    "oialr_longer_plain": f"{LONGER}, `delay=0.3`{PLAIN}",
    "oialr_longer_early": f"{LONGER}, `delay=0.1`",
    "oialr_longer_from_start": f"{LONGER}, from step 0",
    "oialr_longer_then_sigma": f"{LONGER}, `delay=0.3`, `freeze_bases=0.65`",
    "oialr_longer_then_sigma_plain": f"{LONGER}, `delay=0.3`, `freeze_bases=0.65`{PLAIN}",
    "oialr_sigma": f"{FROZEN}, `delay=0.3`",
    "oialr_sigma_plain": f"{FROZEN}, `delay=0.3`{PLAIN}",
    "low_rank": "plain W = A B from step 0",
    "low_rank_late": "plain W = A B after 30 % dense, by SVD",
    "low_rank_frobenius": "plain W = A B, Frobenius decay",
    "relora": "ReLoRA-like restarts, after 30 % dense",
    "merged_lora": "LoRA merged at intervals, after 30 % dense",
    "galore": "GaLore",
}
TASKS = {
    "characters": "A GPT on the characters of TinyShakespeare (nats per character)",
    "medium/characters": "The same with a GPT of 4 layers of width 192",
    "pictures": "A ViT on CIFAR-10 (cross-entropy)",
    "longer/pictures": "The same ViT, trained for longer",
}
OPTIMIZERS = {"muon": "Muon", "adamw": "AdamW"}
RANK = 0.25  # of the comparison
RANKS = (1.0, 0.5, RANK, 0.1)  # of the search for one rate


def row_of(results: list[dict[str, Any]], method: str, optimizer: str, rank: float) -> dict[str, Any]:
    """A line of a table: the runs of a method at the rate that validation chose."""
    own = runs_of(results, method, optimizer, rank)
    rate = best_rate(own)
    chosen = sorted((r for r in own if r["lr"] == rate), key=lambda r: r["seed"])
    grid = {r["lr"]: r["validation"] for r in own if r["seed"] == 0}
    losses = [r["validation"] for r in chosen]
    accuracies = [r["test_accuracy"] for r in chosen if "test_accuracy" in r]
    return {
        "method": method,
        "name": NAMES[method],
        "lr": rate,
        "edge": rate in (min(grid), max(grid)),
        "seeds": len(chosen),
        "losses": losses,
        "validation": mean(losses),
        "low": min(losses),
        "high": max(losses),
        "test": mean(r["test"] for r in chosen),
        "accuracy": 100 * mean(accuracies) if accuracies else None,
        "held": chosen[0]["held"],
        "trained": mean(r["trained_in_second_half"] for r in chosen),
        "optimizer_values": chosen[0]["optimizer_values"],
        "seconds": _last_part(chosen[0]["curve"]),
        "grid": grid,
    }


def _last_part(curve: list[list[float]]) -> float | None:
    """Seconds a step between the last two points; None where the clock ran while other work had the processor."""
    (before, early, _), (after, late, _) = curve[-2:]
    return None if late is None else (late - early) / (after - before)


def table_of(results: list[dict[str, Any]], optimizer: str) -> dict[str, Any]:
    """The methods of one task by one optimizer."""
    tried = {r["method"] for r in results if r["optimizer"] == optimizer}
    rows = [row_of(results, m, optimizer, 1.0 if m == "dense" else RANK) for m in NAMES if m in tried]
    dense = rows[0]
    for row in rows:
        row["time"] = row["seconds"] / dense["seconds"] if row["seconds"] and dense["seconds"] else None
        pairs = list(zip(row["losses"], dense["losses"], strict=False))
        row["gap"] = mean(own - other for own, other in pairs)
    return {
        "optimizer": OPTIMIZERS[optimizer],
        "rows": rows,
        "timed": any(row["time"] for row in rows),
        "by_method": {row["method"]: row for row in rows},
        "rates": sorted({rate for row in rows for rate in row["grid"]}),
        "steps": next(r["steps"] for r in results if r["optimizer"] == optimizer),
    }


def one_rate(results: list[dict[str, Any]], optimizer: str, method: str) -> dict[str, Any] | None:
    """The grid of rates at every rank, and how many steps of it the best ones are apart; None with one rank."""
    found = {"dense": row_of(results, "dense", optimizer, 1.0)}
    for rank in RANKS:
        if runs_of(results, method, optimizer, rank):
            found[f"{100 * rank:.0f} % of the rank"] = row_of(results, method, optimizer, rank)
    if len(found) <= 2:
        return None
    rates = sorted({rate for row in found.values() for rate in row["grid"]})
    best = [rates.index(row["lr"]) for row in found.values()]
    return {
        "title": f"{OPTIMIZERS[optimizer]}, {NAMES[method]}",
        "rows": found,
        "rates": rates,
        "apart": max(best) - min(best),
    }


def full_rank_gaps(results: list[dict[str, Any]], optimizer: str) -> list[float]:
    """Validation loss at full rank less that of dense training, seed by seed, at the rate chosen for dense."""
    rate = best_rate(runs_of(results, "dense", optimizer, 1.0))
    dense, moving = (
        {r["seed"]: r["validation"] for m in methods for r in runs_of(results, m, optimizer, 1.0) if r["lr"] == rate}
        for methods in (("dense",), MOVING)
    )
    return [moving[seed] - dense[seed] for seed in sorted(moving)]


def task_of(name: str, folder: Path) -> dict[str, Any]:
    """All tables of a task."""
    results = read(folder / name)
    used = [optimizer for optimizer in OPTIMIZERS if any(r["optimizer"] == optimizer for r in results)]
    searches = [one_rate(results, optimizer, method) for optimizer in used for method in MOVING]
    return {
        "name": ", ".join(reversed(name.split("/"))),
        "title": TASKS[name],
        "trivial": json.loads((folder / name.split("/")[-1] / "trivial.json").read_text()),
        "tables": [table_of(results, optimizer) for optimizer in used],
        "one_rate": [search for search in searches if search],
        "full_rank_gaps": full_rank_gaps(results, "muon"),
        "versions": results[0]["versions"],
    }


def time_to_quality(folder: Path) -> list[dict[str, Any]]:
    """The runs of the wide model: seconds to the final validation loss of the dense one of the same seed."""
    runs = [json.loads(path.read_text()) for path in sorted((folder / "wide").glob("*.json"))]
    dense = {(run["optimizer"], run["seed"]): run for run in runs if run["method"] == "dense"}
    rows = []
    for run in sorted(runs, key=lambda r: (r["optimizer"] != "muon", r["seed"], r["method"] != "dense", r["steps"])):
        twin = dense[run["optimizer"], run["seed"]]
        aim, whole = twin["validation"], twin["curve"][-1][1]
        reached = next((seconds for _, seconds, loss in run["curve"] if loss <= aim), None)
        row = {"optimizer": OPTIMIZERS[run["optimizer"]], "name": NAMES[run["method"]], "seed": run["seed"]}
        row |= {"steps": run["steps"], "validation": run["validation"], "seconds": run["curve"][-1][1] / whole}
        rows.append({**row, "share": None if reached is None else reached / whole})
    return rows


def spikes_of(folder: Path) -> dict[str, Any]:
    """The changes of the loss after an update, per case: the largest, their mean size, their mean."""
    found = json.loads((folder / "spikes.json").read_text())
    for case in found["cases"]:
        changes = [change for some in case["changes"] for change in some]
        sizes = [abs(change) for change in changes]
        case |= {"largest": max(sizes), "size": mean(sizes), "mean": mean(changes)}
        case["optimizer"] = OPTIMIZERS[case["optimizer"]]
    return found


def step_time(folder: Path) -> dict[str, Any]:
    """The ratios of step_time.py."""
    found = json.loads((folder / "step_time.json").read_text())
    ratios = {OPTIMIZERS[name]: each["ratio"] for name, each in found["optimizers"].items()}
    rounds = len(found["optimizers"]["muon"]["rounds"])
    return {"rank": found["rank"], "ratios": ratios, "rounds": rounds}


def facts(folder: Path) -> dict[str, Any]:
    """What the template needs."""
    tasks = [task_of(name, folder) for name in TASKS]
    tables = [(task, table) for task in tasks for table in task["tables"]]
    return {
        "tasks": tasks,
        "rank": RANK,
        "worth": worth_of_activations(tasks[0]["tables"][0]["by_method"]),
        "beside": beside_the_best([row for _, table in tables for row in table["rows"]]),
        "verdict": [line for task, table in tables if (line := verdict(task, table))],
        "rates": [best_rates(task, table) for task, table in tables],
        "spikes": spikes_of(folder),
        "wide": time_to_quality(folder),
        "step_time": step_time(folder),
        "commands": commands_of(folder),
        "versions": tasks[0]["versions"],
    }


def commands_of(folder: Path) -> list[str]:
    """Everything that makes the results again, line by line."""
    wide = [json.loads(path.read_text()) for path in sorted((folder / "wide").glob("*.json"))]
    steps = json.loads((folder / "spikes.json").read_text())["steps"]
    return [
        *(line for name in TASKS for line in sweeps(name, read(folder / name))),
        *runs_of_wide(wide),
        f"python spikes.py --data DATA --steps {steps} --output results/spikes.json",
        f"python step_time.py --data DATA --rounds {step_time(folder)['rounds']} --output results/step_time.json",
        "python tables.py --data DATA && python plots.py",
    ]


def render(folder: Path) -> str:
    """The README for a folder of results."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template("README.md.jinja").render(facts(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data, to measure the trivial rows again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parsed = parser.parse_args()
    if parsed.data is not None:
        from tasks import TASKS as KINDS

        for name, kind in KINDS.items():
            trivial = kind(parsed.data, kind.sizes["small"]).trivial()
            (parsed.results / name / "trivial.json").write_text(json.dumps(trivial) + "\n")
    (HERE / "README.md").write_text(render(parsed.results))


if __name__ == "__main__":
    main()
