"""The methods that are compared: each turns a dense model into the one that trains, and says what a step needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater


@dataclass
class Trained:
    """A model in training; `after_step` runs after every optimizer step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    after_step: Callable[[], Any] = field(default=lambda: None)


class LowRank(nn.Module):
    """W = A B, both trained, from the spectral start: the singular values of the weight shared evenly."""

    def __init__(self, dense: nn.Linear, rank: int) -> None:
        super().__init__()
        u, s, vh = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
        root = s[:rank].sqrt()
        self.down = nn.Linear(dense.in_features, rank, bias=False)
        self.up = nn.Linear(rank, dense.out_features, bias=dense.bias is not None)
        self.down.weight, self.up.weight = nn.Parameter(root[:, None] * vh[:rank]), nn.Parameter(u[:, :rank] * root)
        if dense.bias is not None:
            self.up.bias = dense.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.down(x))


@dataclass(frozen=True)
class Settings:
    """What a run is given: learning rate, rank as a share, length, and which optimizer trains matrices."""

    lr: float
    rank: float
    steps: int
    optimizer: str = "muon"
    weight_decay: float = 0.1


def dense(model: nn.Module, settings: Settings) -> Trained:
    return Trained(model, make_optimizer(model, settings))


def low_rank(model: nn.Module, settings: Settings) -> Trained:
    """Plain W = A B in every hidden layer, from the first step on."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        rank = max(1, round(settings.rank * min(layer.weight.shape)))
        model.set_submodule(name, LowRank(layer, rank).to(layer.weight.device))
    return Trained(model, make_optimizer(model, settings))


def oialr(model: nn.Module, settings: Settings, **fields: Any) -> Trained:
    """OIALR from scratch, everything else trained too; `fields` of OIALRConfig."""
    config = OIALRConfig(r=settings.rank, train_rest=True, sigma_cutoff=0.0, lr_scale="match", **fields)
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    optimizer = make_optimizer(adapted, settings)
    updater = OIALRUpdater(adapted, optimizer, total_steps=settings.steps)
    return Trained(adapted, optimizer, updater.step)


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Muon for hidden matrices and AdamW for the rest, or AdamW for all; decay on matrices only."""
    if settings.optimizer == "muon":
        return MuonAdamW.from_model(
            model, muon_lr=settings.lr, lr=settings.lr / 10, weight_decay=settings.weight_decay
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.95))
