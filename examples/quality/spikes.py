"""What an update does to the loss of the steps after it: the same 20 steps with the update and without it, as JSON.

python spikes.py --data DATA --output results/spikes.json
At every update the run forks, by the states that a resumed run would load. Nothing is cut, so updates only rotate.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from methods import Settings, adapt
from run import scheduled, task_of
from torch import nn


WINDOW = 20  # steps after an update
RATES = {"muon": 0.02, "adamw": 0.004}
CASES = [  # optimizer, moments, bases
    ("muon", "rotate", "frozen"),
    ("muon", "rotate", "longer"),
    ("adamw", "rotate", "frozen"),
    ("adamw", "rotate", "longer"),
    ("adamw", "reset", "longer"),
]


class Run:
    """A run that can be put back to where it was."""

    def __init__(self, task: Any, settings: Settings, seed: int, **fields: Any) -> None:
        torch.manual_seed(seed)
        self.task, self.batches = task, task.batches(seed)
        self.model, self.optimizer, self.updater = adapt(task.model(), settings, **fields)
        rate = partial(scheduled, steps=settings.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def step(self, batch: Any) -> float:
        """One step of the optimizer; its loss. No update."""
        loss = self.task.loss(self.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item()

    def states(self) -> list[Any]:
        parts = (self.model, self.optimizer, self.updater, self.schedule)
        return [copy.deepcopy(part.state_dict()) for part in parts]

    def go_back(self, states: list[Any]) -> None:
        for part, state in zip((self.model, self.optimizer, self.updater, self.schedule), states, strict=True):
            part.load_state_dict(state)


def forks(run: Run, steps: int, delay: int, every: int) -> Iterator[list[float]]:
    """At every update after the factorisation: the relative change of the loss in each step of the window."""
    for step in range(1, steps - WINDOW):
        if step <= delay or (step - delay) % every:
            run.step(next(run.batches))
            run.updater.step()
            continue
        now, *coming = [next(run.batches) for _ in range(WINDOW + 1)]
        before = run.states()
        _, *without = [run.step(batch) for batch in (now, *coming)]
        run.go_back(before)
        run.step(now)
        if run.updater.step() is None:
            raise RuntimeError(f"No update after step {step}.")
        after = run.states()
        yield [run.step(batch) / other - 1 for batch, other in zip(coming, without, strict=True)]
        run.go_back(after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/")
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rank", type=float, default=0.25)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    task, found = task_of("characters", parsed.data, parsed.size, "cpu"), []
    delay, every = parsed.steps // 4, parsed.steps // 6
    for optimizer, moments, bases in CASES:
        settings = Settings(RATES[optimizer], parsed.rank, parsed.steps, optimizer)
        fields = {"bases": bases, "moments": moments, "layer_step": 1.0, "delay": delay, "update_interval": every}
        changes = list(forks(Run(task, settings, 0, **fields), parsed.steps, delay, every))
        found.append({"optimizer": optimizer, "moments": moments, "bases": bases, "changes": changes})
        print(optimizer, moments, bases, [max(map(abs, some)) for some in changes], flush=True)
    facts = {
        "steps": parsed.steps,
        "window": WINDOW,
        "delay": delay,
        "every": every,
        "rank": parsed.rank,
        "cases": found,
    }
    parsed.output.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
