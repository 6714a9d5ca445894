"""A trained model compressed by each method at the rate that validation prefers; one task and seed, as JSON.

python run.py --data DATA --task characters --seed 0 --output results/characters_0.json
"""

from __future__ import annotations

import copy
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save
from torch import nn


sys.path += [str(Path(__file__).parents[1] / name) for name in ("target_size", "quality", "benchmarks")]
from methods import METHODS
from timing import interleave, ratio
from training import arguments, dense_start, train

import oialr_peft


def bytes_of(model: nn.Module) -> int:
    """Of its safetensors file."""
    return len(save({name: tensor.contiguous() for name, tensor in model.state_dict().items()}))


@torch.no_grad()
def latency(model: nn.Module, dense: nn.Module, task: Any) -> float:
    """The time of a training batch forward, of the dense model's."""
    batch = next(iter(task.batches(0)))
    runs = {"dense": lambda: task.loss(dense, batch), "small": lambda: task.loss(model, batch)}
    return ratio(interleave(runs, rounds=9), "small", "dense")


def main() -> None:
    parser = arguments(__doc__, shares=[0.6, 0.4])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3])
    parsed = parser.parse_args()
    task, dense = dense_start(parsed)

    def tried(name: str, share: float) -> list[dict[str, Any]]:
        """Both losses at every rate; test is reported at the one that validation prefers."""
        seed, found = 100 + parsed.seed, []
        for rate in parsed.rates:
            if name == "dense":
                model, held, stored = train(copy.deepcopy(dense), task, seed, parsed.steps, rate), 1.0, dense
            else:
                model, held, stored = METHODS[name](dense, task, seed, share, parsed.steps, rate)
            run = {"method": name, "share": share, "rate": rate, "held": held}
            run |= {part: task.loss_on(model, part) for part in ("validation", "test")}
            found.append({**run, "bytes": bytes_of(stored), "latency/dense": latency(stored, dense, task)})
            print(found[-1], flush=True)
        return found

    runs = tried("dense", 1.0) + [
        run for share in parsed.shares for name in parsed.methods for run in tried(name, share)
    ]
    given = {key: value for key, value in vars(parsed).items() if key not in ("data", "output", "methods")}
    versions = {name: module.__version__ for name, module in (("torch", torch), ("transformers", transformers))}
    versions |= {"oialr_peft": oialr_peft.__version__, "machine": platform.machine()}
    before = {part: task.loss_on(dense, part) for part in ("validation", "test")}
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(
        json.dumps({**given, "before": before, "runs": runs, "versions": versions}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
