"""What does a whole training step cost, and what does it keep? Every method against dense training.

    python step.py --task bert --output results/step_bert.json
    python step.py --task autoformer --output results/step_autoformer.json

A step is zero_grad, forward, backward and AdamW, on random data. The methods take the same layers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

import torch
from memory import kept_for_backward, parameter_bytes, state_bytes
from methods import METHODS
from tasks import TASKS, Task
from timing import compile_in_place, interleave, ratios, write
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import HfArgumentParser


@dataclass
class Settings:
    """Settings of the measurement."""

    task: str = field(default="bert", metadata={"choices": sorted(TASKS), "help": "Model and data."})
    methods: list[str] = field(default_factory=lambda: list(METHODS), metadata={"help": "Default all; dense first."})
    rounds: int = field(default=5, metadata={"help": "Rounds that count."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "float32, or bfloat16: autocast."})
    compile: str = field(default="", metadata={"help": "Backend or mode of torch.compile; default eager."})
    output: str = field(default="results/step.json", metadata={"help": "Results file."})


def main() -> None:
    """Makes a model per method, steps them in turn and writes time and bytes against dense training."""
    (settings,) = HfArgumentParser(cast(Any, Settings)).parse_args_into_dataclasses()
    task = TASKS[settings.task]().on(settings.device)
    made = {name: METHODS[name](task) for name in tqdm(settings.methods, desc="models")}
    steps = {name: step_of(task, *parts, settings) for name, parts in made.items()}
    for model, _ in made.values():
        compile_in_place(model, settings.compile)
    seconds = interleave(steps, settings.rounds, settings.device)
    rows: list[dict[str, Any]] = []
    for name, (model, optimizer) in made.items():
        times = ratios(seconds, name, "dense")
        row: dict[str, Any] = {"method": name, "time/dense": median(times), "least": min(times), "most": max(times)}
        row["kept"] = kept_for_backward(model, forward_of(task, model, settings.device, settings.dtype))
        row["optimizer"] = state_bytes(optimizer)
        rows.append(row | parameter_bytes(model))
    for row in rows:
        row |= {f"{what}/dense": row[what] / rows[0][what] for what in ("kept", "optimizer")}
    write(settings.output, rows, rounds=settings.rounds, seconds=seconds)


def forward_of(task: Task, model: nn.Module, device: str, dtype: str) -> Callable[[], Tensor]:
    """The forward pass to the loss."""

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return task.loss(model(**task.batch))

    return forward


def step_of(task: Task, model: nn.Module, optimizer: Optimizer, settings: Settings) -> Callable[[], None]:
    """One training step."""
    forward = forward_of(task, model, settings.device, settings.dtype)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
