"""What many tests do: adapt a layer, disturb what trains, train a few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig, OIALRUpdater


class Wrapped(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


def adapt(layer: nn.Module, **settings: Any) -> PeftModel:
    """A model of one layer with an adapter on it."""
    return get_peft_model(Wrapped(layer), OIALRConfig(target_modules=["layer"], **settings))


def disturb(model: nn.Module) -> None:
    """Move the trainable parameters, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


def train(
    model: nn.Module,
    inputs: tuple,
    steps: int = 8,
    optimize: Callable[[list], torch.optim.Optimizer] = lambda parameters: torch.optim.AdamW(parameters, lr=2e-2),
) -> OIALRUpdater:
    """Some steps on one batch; the updater has the optimizer."""
    optimizer = optimize([p for p in model.parameters() if p.requires_grad])
    updater = OIALRUpdater(model, optimizer)
    for _ in range(steps):
        y = model(*inputs)
        (y[0] if isinstance(y, tuple) else y).square().mean().backward()
        optimizer.step()
        updater.step()
        optimizer.zero_grad()
    return updater
