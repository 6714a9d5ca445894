"""Autoformer on ETTm2 at the paper's four horizons by thuml's protocol, one command that goes on where it stopped.

    python horizons.py --data ETTm2.csv.gz --trivial       # the rows that need no training, a minute
    python horizons.py --data ETTm2.csv.gz                 # all: 36 runs, each of 20 minutes and more on a core
    python horizons.py --data ETTm2.csv.gz --d_model 512   # the paper's size, for a GPU
    python horizons.py --card

Adam at 1e-4 for two epochs, then halved each epoch, at most ten, patience 3, the best checkpoint tested. A run is a
process of its own; its record goes into results.json of the card as soon as it ends. One that was cut off goes on
from its last epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from horizons_card import HORIZONS, read, render
from settings import KEEP_BUFFERS


HERE = Path(__file__).resolve().parent
CARD = HERE.parents[1] / "model_cards" / "autoformer-horizons"
SEEDS = (0, 1, 2)
PROTOCOL = {"epochs": 10, "patience": 3, "learning_rate": 1e-4}
METHODS: dict[str, dict[str, Any]] = {
    "dense": {"methods": "dense"},
    # decoded from the authors' figures: all but the cutoff, which only has to be large
    "OIALR, the authors' setting": {
        "methods": "oialr",
        "delay": 600,
        "update_interval": 400,
        "layer_step": 0.1,
        "sigma_cutoff": 0.5,
        "keep_first_layer": True,
        "bases": "frozen",
    },
    # a quarter of every rank within the first epoch, which is often the best one; sigma alone from its end on
    "OIALR, tuned": {
        "methods": "oialr",
        "delay": 300,
        "update_interval": 300,
        "rank": 0.25,
        "sigma_cutoff": 0.0,
        "bases": "longer",
        "freeze_bases": 900,
    },
}
# there two tables of positions, which nothing makes smaller, are a quarter of the file: half of dense's is r = 0.2
OF_HORIZON: dict[int, dict[str, dict[str, Any]]] = {720: {"OIALR, tuned": {"rank": 0.2}}}


def trivial_rows(data: str, horizon: int) -> dict[str, dict[str, float]]:
    """Context mean, persistence and least squares on the 96 values of the context."""
    sys.path.append(str(HERE.parent / "forecast"))
    from baselines import baseline_errors
    from data import load_series
    from linear import linear_errors
    from windows import make_splits

    splits = make_splits(load_series(data), 96, horizon, 48)
    linear = linear_errors(splits.train, splits.validation, splits.test)
    return {**baseline_errors(splits.test), "linear map": linear}


def train(data: str, width: int, horizon: int, method: str, seed: int, work: Path) -> dict[str, Any]:
    """The record of one run of run.py."""
    output = work / f"{width}-{horizon}-{list(METHODS).index(method)}-{seed}"
    given = {"data": data, "d_model": width, "horizon": horizon, "seed": seed, "output": output}
    settings = METHODS[method] | OF_HORIZON.get(horizon, {}).get(method, {})
    flags = [f"--{name}={value}" for name, value in {**given, **PROTOCOL, **settings}.items()]
    command = [sys.executable, str(HERE / "run.py"), "--resume", *flags]
    subprocess.run(command, check=True, env={**KEEP_BUFFERS, **os.environ})
    found = json.loads((output / "results.json").read_text())["runs"][0]
    key = {"method": method, "horizon": horizon, "seed": seed, "width": width}
    kept = (
        "test_mse",
        "test_mae",
        "validation_mse",
        "trainable_percent",
        "parameters_held",
        "compressed_bytes",
        "steps",
    )
    return {**key, **{name: found[name] for name in (*kept, "ranks", "versions", "hardware")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="ETTm2.csv.gz, or a Hub dataset id")
    parser.add_argument("--d_model", type=int, default=128)
    parser.add_argument("--horizons", type=int, nargs="+", choices=HORIZONS, default=HORIZONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="a share for one process")
    parser.add_argument("--trivial", action="store_true", help="only what needs no training")
    parser.add_argument("--card", action="store_true", help="only write the card of what there is")
    parser.add_argument("--output", type=Path, default=CARD, help="folder of results.json and README.md")
    parser.add_argument("--work", type=Path, default=Path("outputs/autoformer-horizons"), help="for models and traces")
    parsed = parser.parse_args()
    if not parsed.card:
        run_missing(parsed)
    (parsed.output / "README.md").write_text(render(parsed.output, METHODS))


def keys(results: dict[str, Any]) -> set[tuple[int, int, str, int]]:
    """Of the runs that there are."""
    return {(run["width"], run["horizon"], run["method"], run["seed"]) for run in results["runs"]}


def run_missing(parsed: argparse.Namespace) -> None:
    """Runs what the results do not have, one seed of everything before the next."""
    from report import write_json

    def keep(results: dict[str, Any]) -> None:
        write_json(parsed.output / "results.json", results)

    for horizon in parsed.horizons:
        results = read(parsed.output)
        if str(horizon) not in results["trivial"]:
            found = trivial_rows(parsed.data, horizon)
            results = read(parsed.output)  # another process may have written in the meantime, here and below
            keep({**results, "trivial": {**results["trivial"], str(horizon): found}})
    for seed in () if parsed.trivial else parsed.seeds:
        for horizon in parsed.horizons:
            for method in parsed.methods:
                key = (parsed.d_model, horizon, method, seed)
                if key not in keys(read(parsed.output)):
                    found = train(parsed.data, *key, parsed.work)
                    results = read(parsed.output)
                    if key not in keys(results):
                        keep({**results, "runs": [*results["runs"], found]})


if __name__ == "__main__":
    main()
