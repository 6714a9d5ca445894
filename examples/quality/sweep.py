"""Every run of a comparison; what is in the results folder already is not run again.

python sweep.py --data DATA --task characters --optimizer muon --rates 0.01 0.02 0.04 0.08
Rates come from one grid for every method, with seed 0; the other seeds run at the rate that validation chose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from run import METHODS, record
from tasks import TASKS


HERE = Path(__file__).parent


def name_of(method: str, optimizer: str, lr: float, rank: float, seed: int) -> str:
    """The results file of a run."""
    return f"{method}_{optimizer}_rank{rank:g}_lr{lr:g}_seed{seed}.json"


def read(folder: Path) -> list[dict]:
    """Every result in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]


def runs_of(results: list[dict], method: str, optimizer: str, rank: float) -> list[dict]:
    """The runs of a method, at all rates and seeds."""
    return [r for r in results if (r["method"], r["optimizer"], r["rank"]) == (method, optimizer, rank)]


def best_rate(runs: list[dict]) -> float:
    """The rate with the lowest validation loss of seed 0; a loss that is no number is the worst."""
    found = [r for r in runs if r["seed"] == 0]
    return min(found, key=lambda r: (r["validation"] != r["validation"], r["validation"]))["lr"]


def missing(parsed: argparse.Namespace, pairs: list[tuple[str, float]], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The options of runs that have no result yet."""
    folder = parsed.output / parsed.task
    results = read(folder)
    for method, rank in pairs:
        for seed in seeds:
            rates = [best_rate(runs_of(results, method, parsed.optimizer, rank))] if seed else parsed.rates
            for lr in rates:
                output = folder / name_of(method, parsed.optimizer, lr, rank, seed)
                given = {"method": method, "rank": rank, "lr": lr, "seed": seed, "output": output}
                given |= {k: getattr(parsed, k) for k in ("data", "task", "size", "steps", "optimizer", "device")}
                if not output.exists():
                    yield given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/ and cifar10-jpeg/")
    parser.add_argument("--task", choices=TASKS, default="characters")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ranks", nargs="+", type=float, default=[0.25])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.02, 0.04])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parsed = parser.parse_args()
    pairs = [(m, 1.0 if m == "dense" else rank) for m in parsed.methods for rank in parsed.ranks]
    pairs = list(dict.fromkeys(pairs))
    for seeds in ([0] if 0 in parsed.seeds else [], [seed for seed in parsed.seeds if seed]):
        with ProcessPoolExecutor(parsed.jobs, mp_context=get_context("spawn")) as pool:
            for ended in [pool.submit(record, **given) for given in missing(parsed, pairs, seeds)]:
                ended.result()


if __name__ == "__main__":
    main()
