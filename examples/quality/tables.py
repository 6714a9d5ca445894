"""README.md of this folder, from the results: python tables.py"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from gpt import SIZES, Text
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sweep import best_rate, read


HERE = Path(__file__).parent
NAMES = {
    "dense": "dense",
    "oialr_longer": 'OIALR, `bases="longer"`, `delay=0.3`',
    "oialr_longer_then_sigma": "the same, `freeze_bases=0.65`: sigma alone after",
    "low_rank": "plain W = A B from step 0",
    "oialr_sigma": 'OIALR, `bases="frozen"`, `delay=0.3`',
}


RANK = 0.25  # of the comparison
RANKS = (1.0, 0.5, RANK, 0.1)  # of the search for one rate


def row_of(results: list[dict[str, Any]], method: str, rank: float) -> dict[str, Any]:
    """A line of the table: the runs of a method at the rate that validation chose."""
    own = [r for r in results if (r["method"], r["rank"]) == (method, rank)]
    rate = best_rate(results, method, rank)
    chosen = [r for r in own if r["lr"] == rate]
    grid = {r["lr"]: r["validation"] for r in own if r["seed"] == 0}
    losses = [r["validation"] for r in chosen]
    return {
        "name": NAMES[method],
        "lr": rate,
        "edge": rate in (min(grid), max(grid)),
        "validation": mean(losses),
        "low": min(losses),
        "high": max(losses),
        "test": mean(r["test"] for r in chosen),
        "held": chosen[0]["held"],
        "trained": mean(r["trained_in_second_half"] for r in chosen),
        "seconds": mean(r["curve"][-1][1] - r["curve"][-2][1] for r in chosen),
        "grid": grid,
    }


def facts(results: list[dict[str, Any]], bigram: float) -> dict[str, Any]:
    """What the template needs."""
    rows = {method: row_of(results, method, 1.0 if method == "dense" else RANK) for method in NAMES}
    ranks = {rank: row_of(results, "oialr_longer", rank) for rank in RANKS}
    for row in rows.values():
        row["time"] = row["seconds"] / rows["dense"]["seconds"]
    held = [row["held"] for method, row in rows.items() if method != "dense"]
    gap = rows["low_rank"]["validation"] - rows["dense"]["validation"]
    return {
        "rows": list(rows.values()),
        "ranks": {"dense": rows["dense"], **{f"{100 * rank:.0f} % of the rank": row for rank, row in ranks.items()}},
        "full_rank_gaps": _gaps(results),
        "rates": sorted({r["lr"] for r in results}),
        "seeds": sorted({r["seed"] for r in results}),
        "steps": results[0]["steps"],
        "rank": RANK,
        "spread": max(held) / min(held) - 1,
        "bigram": bigram,
        "closed": round(100 * (rows["low_rank"]["validation"] - rows["oialr_longer"]["validation"]) / gap),
        "share": rows["oialr_longer"]["trained"] / rows["low_rank"]["trained"],
        "versions": results[0]["versions"],
    }


def _gaps(results: list[dict[str, Any]]) -> list[float]:
    """Validation loss at full rank less that of dense training, seed by seed, at the rate chosen for dense."""
    rate = best_rate(results, "dense", 1.0)
    losses = {(r["method"], r["seed"]): r["validation"] for r in results if (r["lr"], r["rank"]) == (rate, 1.0)}
    seeds = sorted(seed for method, seed in losses if method == "oialr_longer")
    return [losses["oialr_longer", seed] - losses["dense", seed] for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="TinyShakespeare's input.txt, to measure the trivial row again")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parsed = parser.parse_args()
    trivial = parsed.results / "trivial.json"
    if parsed.text is not None:
        bigram = Text(parsed.text, SIZES["small"]).bigram_loss("test")
        trivial.write_text(json.dumps({"bigram": bigram}) + "\n")
    (HERE / "README.md").write_text(render(parsed.results))


def render(results: Path) -> str:
    """The README for a folder of results."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    bigram = json.loads((results / "trivial.json").read_text())["bigram"]
    return environment.get_template("README.md.jinja").render(facts(read(results), bigram))


if __name__ == "__main__":
    main()
