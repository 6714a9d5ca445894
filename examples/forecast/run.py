"""Every method on one series and horizon: rates by validation with the first seed, then all seeds; JSON.

    python run.py --data ETTm2.csv.gz --model patchtst --output results/patchtst_ETTm2_96.json
    python run.py --data ETTh1.csv.gz --model patchtst --rates-of results/patchtst_ETTm2_96.json \\
        --output results/patchtst_ETTh1_96.json

The output file is written after every run, and what it has already, of the same plan, is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch


sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("quality", "autoformer", "benchmarks")]
from baselines import baseline_errors
from data import load_series
from linear import linear_errors
from models import TARGETS
from record import Record
from sweep import best_rate
from training import METHODS, METHODS_OF, Plan, train
from windows import make_splits


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="csv or csv.gz file, or the id of a Hub dataset")
    parser.add_argument("--model", choices=TARGETS, required=True)
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--context", type=int, default=336)
    parser.add_argument("--methods", nargs="+", choices=METHODS_OF, default=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-3, 2e-3, 8e-3])
    parser.add_argument("--rates-of", type=Path, help="results whose choice of rates is taken over, without a search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.25, help="of the dense values that the others end with")
    parser.add_argument("--validated", type=int, default=500, help="windows of the validation split, evenly spaced")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    parsed = arguments()
    torch.set_num_threads(1)
    plan = Plan(**{field.name: getattr(parsed, field.name) for field in fields(Plan)})
    splits = make_splits(load_series(parsed.data), plan.context, plan.horizon, plan.context // 2)
    series = Path(parsed.data).name.split(".")[0]

    def facts() -> dict[str, Any]:
        linear = linear_errors(splits.train, splits.validation, splits.test)
        trivial = {"linear map": linear, **baseline_errors(splits.test)}
        return {"series": series, "windows": len(splits.train), "trivial": trivial}

    record = Record(parsed.output, asdict(plan), facts)
    if (other := record.content["series"]) != series:
        raise ValueError(f"output: {parsed.output} has runs on {other}, not on {series}; name another file.")
    first, *others = parsed.seeds

    def run(method: str, rate: float, seed: int) -> None:
        key = {"method": method, "rate": rate, "seed": seed}
        record.run(key, lambda: train(plan, splits, **key))

    rates: dict[str, list[float]] = {method: parsed.rates for method in parsed.methods}
    if parsed.rates_of is not None:
        record.content["rates_of"] = parsed.rates_of.stem
        chosen = json.loads(parsed.rates_of.read_text())["runs"]
        rates = {method: [best_rate(chosen, method)] for method in parsed.methods}
    for place in range(max(map(len, rates.values()))):
        for method in parsed.methods:
            run(method, rates[method][place], first)
    for seed in others:
        for method in parsed.methods:
            run(method, best_rate(record.content["runs"], method), seed)


if __name__ == "__main__":
    main()
