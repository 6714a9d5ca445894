"""Writes a model card from the results.json beside it: `python card.py FOLDER`. Same results, same card."""

import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined


TEMPLATE = Path(__file__).with_name("card.md.jinja")


def figure(row: dict[str, Any], digits: int = 4) -> str:
    """Returns "mean ± sample standard deviation" of an aggregated figure."""
    return f"{row['mean']:.{digits}f}" + ("" if row["std"] is None else f" ± {row['std']:.{digits}f}")


def facts(results: dict[str, Any]) -> dict[str, Any]:
    """Returns what the template shows, from the results of sweep.py and its `notes`, where given."""
    chosen, runs = results["chosen"], results["runs"]
    seeds = list(dict.fromkeys(run["settings"]["seed"] for run in runs))
    dense, oialr = chosen["dense"], chosen["oialr"]
    ratio = oialr["test_mse"]["mean"] / dense["test_mse"]["mean"]
    spread = max(row["test_mse"]["std"] or 0 for row in (dense, oialr))
    within = abs(oialr["test_mse"]["mean"] - dense["test_mse"]["mean"]) <= spread
    run = runs[-1]
    return {
        "s": run["settings"],
        "methods": {name: table_row(row) for name, row in chosen.items()},
        "trivial": results["trivial predictors"],
        "seeds": ", ".join(map(str, seeds)),
        "first_seed": seeds[0],
        "ratio": ratio,
        "percent": oialr["trainable_percent"]["mean"],
        "verdict": f"The difference lies {'within' if within else 'outside'} the larger of the two spreads.",
        "rates": ", ".join(dense["validation_mse"]),
        "validation": {rate: [compared(row, rate) for row in chosen.values()] for rate in dense["validation_mse"]},
        "by_seed": {s: [per_seed(runs, name, s) for name in chosen] for s in seeds},
        "command": results["command"],
        "notes": results.get("notes", []),
        "hardware": hardware(run["hardware"]),
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }


def table_row(row: dict[str, Any]) -> dict[str, str]:
    """Returns one method's row of the first table."""
    return {
        "test_mse": figure(row["test_mse"]),
        "test_mae": figure(row["test_mae"]),
        "trainable": f"{row['trainable_parameters']['mean']:,.0f} ({row['trainable_percent']['mean']:.1f} %)",
        "held": f"{row['parameters_held']['mean']:,.0f}",
        "bytes": f"{row['compressed_bytes']['mean']:,.0f}",
        "rate": row["learning_rate"],
    }


def compared(row: dict[str, Any], rate: str) -> str:
    """Returns the validation MSE of a learning rate at the first seed."""
    return f"{row['validation_mse'][rate]:.4f}" if rate in row["validation_mse"] else "not run"


def per_seed(runs: list[dict[str, Any]], method: str, seed: int) -> str:
    """Returns the test MSE of one run."""
    return next(f"{r['test_mse']:.4f}" for r in runs if r["method"] == method and r["settings"]["seed"] == seed)


def hardware(row: dict[str, Any]) -> str:
    return f"Hardware: {row['cores']} {row['machine']} cores, {row['threads']} thread per run, {row['device']}"


def render(folder: Path) -> str:
    """Returns the card of the results in `folder`."""
    results = json.loads((folder / "results.json").read_text())
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text()).render(facts(results))


if __name__ == "__main__":
    card = Path(sys.argv[1])
    (card / "README.md").write_text(render(card))
