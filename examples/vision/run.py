"""Dense, OIALR as the docs set it, OIALR with a setting that validation chose; all seeds, as JSON.

    python run.py --data cifar10-jpeg --model vit --output results/vit_small.json
    python run.py --data uoft-cs/cifar10 --model vit --size paper --steps 54000 --batch 256 --device cuda \\
        --counts 46000 4000 10000 --output results/vit_paper.json

The output file is written after every run, and what it has already, of the same plan, is not run again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch


sys.path += [
    str(Path(__file__).resolve().parents[1] / name)
    for name in ("forecast", "gpu", "autoformer", "benchmarks", "quality")
]
from pictures import COUNTS, load_pictures
from record import Record
from ridge import ridge_accuracy
from training import MODELS, train


UNTUNED: dict[str, Any] = {"bases": "longer", "target_size": 0.3, "delay": 0.3}  # as docs/from_scratch.md, smaller
SETTINGS: dict[str, dict[str, Any]] = {  # what is tried for OIALR tuned, each at every multiple of dense's best rate
    "sigma alone, 40 %": {"bases": "frozen", "target_size": 0.4, "delay": 0.3},
    "longer until 80 %, 30 %": {"bases": "longer", "freeze_bases": 0.8, "target_size": 0.3, "delay": 0.3},
    "longer until 90 %, 40 %": {"bases": "longer", "freeze_bases": 0.9, "target_size": 0.4, "delay": 0.3},
    "longer until 90 %, 60 %": {"bases": "longer", "freeze_bases": 0.9, "target_size": 0.6, "delay": 0.3},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train.parquet and test.parquet, or a Hub dataset id")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--size", choices=("small", "medium", "paper"), default="small")
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="of dense training")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="tried as tuned")
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 2.0], help="of dense's rate, for tuned")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--counts", type=int, nargs=3, default=list(COUNTS.values()), metavar=tuple(COUNTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run that validation prefers."""
    return max(runs, key=lambda run: run["validation"])


def main() -> None:
    parsed = arguments()
    torch.set_num_threads(1)
    plan = {name: getattr(parsed, name) for name in ("model", "size", "steps", "batch", "counts", "device")}
    splits = load_pictures(parsed.data, dict(zip(COUNTS, parsed.counts, strict=True)))
    data = {name: (images.to(parsed.device), classes.to(parsed.device)) for name, (images, classes) in splits.items()}
    numbers = {name: (images.float() / 127.5 - 1, classes) for name, (images, classes) in splits.items()}
    record = Record(parsed.output, plan, lambda: {"linear": ridge_accuracy(numbers["train"], numbers["test"])})

    def run(method: str, setting: str, rate: float, seed: int) -> dict[str, Any]:
        fields = {"dense": None, "untuned": UNTUNED}.get(method, SETTINGS.get(setting))
        key = {"method": method, "setting": setting, "rate": rate, "seed": seed}
        return record.run(key, lambda: train(plan, data, rate, seed, fields))

    first, *others = parsed.seeds
    dense = best([run("dense", "", rate, first) for rate in parsed.rates])
    run("untuned", "", dense["rate"], first)
    tried = [
        run("tuned", name, times * dense["rate"], first) for name in parsed.settings for times in parsed.multiples
    ]
    tuned = best(tried)
    for seed in others:
        run("dense", "", dense["rate"], seed)
        run("untuned", "", dense["rate"], seed)
        run("tuned", tuned["setting"], tuned["rate"], seed)


if __name__ == "__main__":
    main()
