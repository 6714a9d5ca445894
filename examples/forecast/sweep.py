"""Every case of the cards, each in a process of its own; what is in the results files already is not run again.

    python sweep.py --data ETT-small                      # folder of ETTh1.csv.gz, ETTh2.csv.gz, ETTm2.csv.gz
    python sweep.py --data ETT-small --models patchtst --cases ETTm2_192 ETTm2_336 ETTm2_720

The first case of a model searches the rates, and 720 steps theirs; the others take over the first one's.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
CARDS = HERE.parents[1] / "model_cards"
CASES = ("ETTh1_96", "ETTm2_96", "ETTh2_96", "ETTm2_192", "ETTm2_336", "ETTm2_720")
MODELS = {"patchtst": CASES, "patchtsmixer": CASES[:3]}
SEARCHED = (CASES[0], "ETTm2_720")
STEPS = {"patchtst": 1200, "patchtsmixer": 400}


def command(data: Path, cards: Path, model: str, case: str) -> list[str]:
    """The flags of run.py for a case."""
    series, horizon = case.split("_")
    given = {"data": data / f"{series}.csv.gz", "model": model, "horizon": horizon, "steps": STEPS[model]}
    given["output"] = cards / model / f"{case}.json"
    if case not in SEARCHED:
        given["rates-of"] = cards / model / f"{MODELS[model][0]}.json"
    return [f"--{name}={value}" for name, value in given.items()]


def best_rate(runs: list[dict[str, Any]], method: str) -> float:
    """The rate with the lowest validation error at the method's first seed; a run that diverged is the worst."""
    own = [run for run in runs if run["method"] == method]
    first = {run["rate"]: run["validation"] for run in own if run["seed"] == own[0]["seed"]}
    return min(first, key=lambda rate: (math.isnan(first[rate]), first[rate]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--output", type=Path, default=CARDS, help="folder of the models' folders")
    parsed = parser.parse_args()
    for model in parsed.models:
        for case in (case for case in MODELS[model] if case in parsed.cases):
            flags = command(parsed.data, parsed.output, model, case)
            subprocess.run([sys.executable, str(HERE / "run.py"), *flags], check=True)


if __name__ == "__main__":
    main()
