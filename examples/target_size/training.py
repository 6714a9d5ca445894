"""The loop that every method here trains in."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn


def train(model: nn.Module, task: Any, seed: int, steps: int, lr: float, after: Any = None) -> nn.Module:
    """AdamW, a warm-up over a tenth, then a cosine to a twentieth; `after(optimizer)` gives what follows a step."""
    groups = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    follow = after(optimizer) if after else lambda: None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, steps=steps))
    for _, batch in zip(range(steps), task.batches(seed)):  # noqa: B905
        task.loss(model, batch).backward()
        nn.utils.clip_grad_norm_(groups, 1.0)
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
