"""Training from scratch with one delay after another; one task and seed, a file per run. What is there stays.

python run.py --data DATA --task characters --seed 0 --delays 0.1 0.2 0.3 0.4 0.5 auto
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch


sys.path += [str(Path(__file__).parents[1] / name) for name in ("target_size", "quality")]
from gpt import SIZES
from methods import Settings, make_optimizer
from tasks import Characters, Pictures
from training import adamw, train

import oialr_peft
from oialr_peft import OIALRConfig, OIALRUpdater


HERE = Path(__file__).parent


class Setting(NamedTuple):
    """What is trained and how: the task, the number of steps, the rate and the optimizer."""

    task: Any
    steps: int
    lr: float
    optimizer_of: Any


def muon(model: Any, lr: float) -> torch.optim.Optimizer:
    """As in examples/quality."""
    return make_optimizer(model, Settings(lr, rank=1.0, steps=0))


SETTINGS = {
    "characters": Setting(partial(Characters, size=SIZES["small"]), 600, 0.04, muon),
    "pictures": Setting(Pictures, 500, 2e-3, adamw),
}


def trained(setting: Setting, task: Any, seed: int, delay: str, bases: str) -> dict[str, Any]:
    """One run to its end: `delay` is "none" for dense training, "auto", or a share of the run."""
    began = time.process_time()
    torch.manual_seed(seed)
    model: Any = task.model()
    left: dict[str, int] = {}  # the step at which each layer left the full-rank phase

    def updates(optimizer: torch.optim.Optimizer) -> Any:
        updater = OIALRUpdater(model, optimizer, total_steps=setting.steps)

        def after() -> None:
            if updater.step() is not None:
                for name, weight in updater.weights.items():
                    if weight.is_factored:
                        left.setdefault(name, updater.steps)

        return after

    if delay != "none":
        chosen: Any = delay if delay == "auto" else float(delay)
        fields: Any = {"delay": chosen, "bases": bases, "update_interval": 0.05, "sigma_cutoff": 0.0}
        model = peft.get_peft_model(model, OIALRConfig(r=0.25, train_rest=True, **fields))
    train(model, task, seed, setting.steps, setting.lr, None if delay == "none" else updates, setting.optimizer_of)
    losses = {part: task.loss_on(model, part) for part in ("validation", "test")}
    return {**losses, "left": left, "seconds": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/ and cifar10-jpeg/")
    parser.add_argument("--task", choices=SETTINGS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delays", nargs="+", default=["none", "0.1", "0.2", "0.3", "0.4", "0.5", "auto"])
    parser.add_argument("--bases", choices=("longer", "frozen"), default="longer")
    parser.add_argument("--steps", type=int, help="default: what the task's setting says")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    setting = SETTINGS[parsed.task]
    setting = setting._replace(steps=parsed.steps or setting.steps)
    task = setting.task(parsed.data)
    versions = {"torch": torch.__version__, "oialr_peft": oialr_peft.__version__, "machine": platform.machine()}
    parsed.output.mkdir(parents=True, exist_ok=True)
    for delay in parsed.delays:
        file = parsed.output / f"{parsed.task}_{parsed.bases}_{delay}_seed{parsed.seed}.json"
        if not file.exists():
            found = trained(setting, task, parsed.seed, delay, parsed.bases)
            given = {"task": parsed.task, "bases": parsed.bases, "delay": delay, "seed": parsed.seed}
            given |= {"steps": setting.steps, "lr": setting.lr}
            file.write_text(json.dumps({**given, **found, "versions": versions}, indent=1) + "\n")
            print(file.name, found["validation"], found["test"], f"{found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
