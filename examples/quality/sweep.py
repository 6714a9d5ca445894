"""Every run of a comparison, each in a process of its own; what is in the results folder already is not run again.

python sweep.py --text input.txt --output results
Rates come from one grid for every method, with seed 0; the other seeds run at the rate that validation chose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from run import METHODS


HERE = Path(__file__).parent


def name_of(method: str, lr: float, rank: float, seed: int) -> str:
    """The results file of a run."""
    return f"{method}_rank{rank:g}_lr{lr:g}_seed{seed}.json"


def read(folder: Path) -> list[dict]:
    """Every result in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]


def best_rate(results: list[dict], method: str, rank: float) -> float:
    """The rate with the lowest validation loss of seed 0."""
    found = [r for r in results if (r["method"], r["rank"], r["seed"]) == (method, rank, 0)]
    return min(found, key=lambda r: r["validation"])["lr"]


def missing(
    parsed: argparse.Namespace, pairs: list[tuple[str, float]], seeds: list[int], rate: float | None
) -> Iterator:
    """The command lines of runs that have no result yet."""
    results = read(parsed.output)
    for method, rank in pairs:
        for seed in seeds:
            for lr in parsed.rates if rate is None and seed == 0 else [best_rate(results, method, rank)]:
                output = parsed.output / name_of(method, lr, rank, seed)
                given = {"method": method, "rank": rank, "lr": lr, "seed": seed, "output": output, "text": parsed.text}
                given |= {"size": parsed.size, "steps": parsed.steps, "device": parsed.device}
                if not output.exists():
                    yield [sys.executable, str(HERE / "run.py"), *(f"--{k}={v}" for k, v in given.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--ranks", nargs="+", type=float, default=[0.25])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01, 0.02, 0.04])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parsed = parser.parse_args()
    parsed.output.mkdir(parents=True, exist_ok=True)
    pairs = [(m, 1.0 if m == "dense" else rank) for m in parsed.methods for rank in parsed.ranks]
    pairs = list(dict.fromkeys(pairs))
    for seeds in ([0], [seed for seed in parsed.seeds if seed]):
        commands = list(missing(parsed, pairs, seeds, None))
        with ThreadPoolExecutor(parsed.jobs) as pool:
            for ended in pool.map(lambda command: subprocess.run(command, check=False), commands):
                ended.check_returncode()


if __name__ == "__main__":
    main()
