"""What the comparisons of this folder and of examples/compression share: arguments, the dense model, the loop."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn


sys.path.append(str(Path(__file__).parents[1] / "quality"))
from tasks import TASKS


def arguments(description: str | None, shares: Sequence[float]) -> argparse.ArgumentParser:
    """The options of a run; `shares` is what it compresses to by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of tinyshakespeare/ and cifar10-jpeg/")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="+", default=list(shares))
    parser.add_argument("--dense-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=2e-3, help="of the dense model's training")
    parser.add_argument("--output", type=Path, required=True)
    return parser


def dense_start(parsed: argparse.Namespace) -> tuple[Any, nn.Module]:
    """The task, and the dense model that is to be compressed."""
    torch.set_num_threads(1)
    torch.manual_seed(parsed.seed)
    task = TASKS[parsed.task](parsed.data)
    return task, train(task.model(), task, parsed.seed, parsed.dense_steps, parsed.lr)


def adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """One group, whatever trains."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)


def train(
    model: nn.Module, task: Any, seed: int, steps: int, lr: float, after: Any = None, optimizer_of: Any = adamw
) -> nn.Module:
    """A warm-up over a tenth, then a cosine to a twentieth; `after(optimizer)` gives what follows a step."""
    optimizer = optimizer_of(model, lr)
    follow = after(optimizer) if after else lambda: None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))
    for _, batch in zip(range(steps), task.batches(seed)):  # noqa: B905
        task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        follow()
        schedule.step()
        optimizer.zero_grad()
    return model


def _rate(step: int, steps: int) -> float:
    warm = steps / 10
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
