"""A dense model, then the same steps of compression from it by each rule; one seed, as JSON.

python run.py --data DATA --task characters --seed 0 --output results/characters_0.json
"""

from __future__ import annotations

import copy
import json
import platform
from typing import Any
from unittest import mock

import peft
import torch
from rules import Cutoff, Uniform
from torch import nn
from training import arguments, dense_start, train

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater, joint_ranks
from oialr_peft.plain import model_size


RULES = ("target_size", "squared gradients", "plain spectra", "cutoff per layer", "uniform")


def compressed(dense: nn.Module, task: Any, seed: int, rule: str, share: float, steps: int, lr: float) -> dict:
    """Compress a copy of the dense model while it trains on; by every rule the same decides what stays at a rank."""
    config = OIALRConfig(target_size=share, train_rest=True, bases="frozen")
    model: Any = peft.get_peft_model(copy.deepcopy(dense), config)  # type: ignore[arg-type]

    def updates(optimizer: torch.optim.Optimizer) -> Any:
        updater = OIALRUpdater(model, optimizer, total_steps=steps)
        own: Any = updater.policies.ranks
        if rule not in ("target_size", "squared gradients"):
            updater.carrier.squared_gradient = lambda parameter: None
        if rule in ("cutoff per layer", "uniform"):
            kind = Cutoff if rule == "cutoff per layer" else Uniform
            updater.policies = updater.policies._replace(ranks=kind(own.share, own.rest, own.approach, own.min_rank))
        return updater.step

    seen = joint_ranks.seen_spectrum if rule == "target_size" else lambda core, seen: None
    with mock.patch.object(joint_ranks, "seen_spectrum", seen):
        train(model, task, 100 + seed, steps, lr, updates)
    ranks = model.base_model.ranks()
    return {
        "rule": rule,
        "share": share,
        "held": model_size(model).share,
        "test": task.loss_on(model, "test"),
        "ranks": ranks,
    }


def main() -> None:
    parser = arguments(__doc__, shares=[0.3])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parsed = parser.parse_args()
    task, dense = dense_start(parsed)
    found = [
        compressed(dense, task, parsed.seed, rule, share, parsed.steps, parsed.lr / 2)
        for share in parsed.shares
        for rule in parsed.rules
    ]
    given = {key: value for key, value in vars(parsed).items() if key not in ("data", "output")}
    versions = {"torch": torch.__version__, "oialr_peft": oialr_peft.__version__, "machine": platform.machine()}
    more = {
        "dense": task.loss_on(dense, "test"),
        "dense_trained_on": task.loss_on(train(dense, task, 100 + parsed.seed, parsed.steps, parsed.lr / 2), "test"),
    }
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps({**given, **more, "runs": found, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
