"""A dense model, then the same steps of compression from it by each rule; one seed, as JSON.

python run.py --data DATA --task characters --seed 0 --output results/characters_0.json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from rules import Cutoff, Uniform
from tasks import TASKS
from torch import nn

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater
from oialr_peft.plain import model_size


RULES = ("target_size", "plain spectra", "cutoff per layer", "uniform")


def train(model: nn.Module, task: Any, seed: int, steps: int, lr: float, after: Any = None) -> nn.Module:
    """AdamW, a warm-up over a tenth, then a cosine to a twentieth; `after(optimizer)` gives what follows a step."""
    groups = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    follow = after(optimizer) if after else lambda: None
    rate = partial(_rate, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _, batch in zip(range(steps), task.batches(seed)):  # noqa: B905
        task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(groups, 1.0)
        optimizer.step()
        follow()
        schedule.step()
        optimizer.zero_grad()
    return model


def compressed(dense: nn.Module, task: Any, seed: int, rule: str, share: float, steps: int, lr: float) -> dict:
    """Compress a copy of the dense model while it trains on."""
    config = OIALRConfig(target_size=share, train_rest=True)
    model: Any = peft.get_peft_model(copy.deepcopy(dense), config)  # type: ignore[arg-type]

    def updates(optimizer: torch.optim.Optimizer) -> Any:
        updater = OIALRUpdater(model, optimizer, total_steps=steps)
        own: Any = updater.policies.ranks
        if rule != "target_size":
            updater.carrier.squared_gradient = lambda parameter: None
        if rule in ("cutoff per layer", "uniform"):
            kind = Cutoff if rule == "cutoff per layer" else Uniform
            updater.policies = updater.policies._replace(ranks=kind(own.share, own.rest, own.approach, own.min_rank))
        return updater.step

    train(model, task, 100 + seed, steps, lr, updates)
    ranks = model.base_model.ranks()
    return {"rule": rule, "share": share, "held": model_size(model).share, "test": task.test(model), "ranks": ranks}


def _rate(step: int, steps: int) -> float:
    warm = steps / 10
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/ and cifar10-jpeg/")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--dense-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(parsed.seed)
    task = TASKS[parsed.task](parsed.data)
    dense = train(task.model(), task, parsed.seed, parsed.dense_steps, parsed.lr)
    found = [
        compressed(dense, task, parsed.seed, rule, share, parsed.steps, parsed.lr / 2)
        for share in parsed.shares
        for rule in parsed.rules
    ]
    given = {key: value for key, value in vars(parsed).items() if key not in ("data", "output")}
    versions = {"torch": torch.__version__, "oialr_peft": oialr_peft.__version__, "machine": platform.machine()}
    more = {
        "dense": task.test(dense),
        "dense_trained_on": task.test(train(dense, task, 100 + parsed.seed, parsed.steps, parsed.lr / 2)),
    }
    parsed.output.parent.mkdir(parents=True, exist_ok=True)
    parsed.output.write_text(json.dumps({**given, **more, "runs": found, "versions": versions}, indent=1) + "\n")


if __name__ == "__main__":
    main()
