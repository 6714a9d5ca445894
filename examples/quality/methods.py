"""Dense training and OIALR: each turns a dense model into the one that trains, and says what a step needs."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

from oialr_peft import MuonAdamW, OIALRConfig, OIALRUpdater
from oialr_peft.linalg import stored_size


@dataclass
class Trained:
    """A model in training; `after_step` runs after every optimizer step, `rate(step)` is a factor on the schedule."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    after_step: Callable[[], Any] = field(default=lambda: None)
    rate: Callable[[int], float] = field(default=lambda step: 1.0)


@dataclass(frozen=True)
class Settings:
    """What a run is given: learning rate, rank as a share, length, and which optimizer trains matrices."""

    lr: float
    rank: float
    steps: int
    optimizer: str = "muon"
    weight_decay: float = 0.1


def hidden(model: nn.Module) -> list[str]:
    """The names of the layers that every method takes: the linear ones but heads."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if not name.endswith(("classifier", "lm_head"))]


def dense(model: nn.Module, settings: Settings) -> Trained:
    return Trained(model, make_optimizer(model, settings))


def oialr(model: nn.Module, settings: Settings, **fields: Any) -> Trained:
    """OIALR from scratch, everything else trained too; `fields` of OIALRConfig."""
    adapted, optimizer, updater = adapt(model, settings, **fields)
    return Trained(adapted, optimizer, updater.step)


def sized(model: nn.Module, settings: Settings, **fields: Any) -> Trained:
    """OIALR with the ranks of all layers chosen together; it holds as many values as with one rank for all."""
    layers: list[Any] = [model.get_submodule(name) for name in hidden(model)]
    saved = sum(layer.weight.numel() - stored_size(layer.weight.shape, rank_of(layer, settings)) for layer in layers)
    share = 1 - saved / sum(p.numel() for p in model.parameters())
    return oialr(model, replace(settings, rank=1.0), target_size=share, **fields)


def rank_of(layer: Any, settings: Settings) -> int:
    """The rank that is the settings' share of a layer's."""
    return max(1, round(settings.rank * min(layer.weight.shape)))


def adapt(
    model: nn.Module, settings: Settings, **fields: Any
) -> tuple[nn.Module, torch.optim.Optimizer, OIALRUpdater]:
    """The parts of an OIALR run: the model with its adapter, the optimizer, the updater."""
    given = {"train_rest": True, "lr_scale": "match", **fields}
    given |= {} if "target_size" in fields else {"sigma_cutoff": 0.0}
    config = OIALRConfig(r=float(settings.rank), target_modules=hidden(model), **given)
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    optimizer = make_optimizer(adapted, settings)
    return adapted, optimizer, OIALRUpdater(adapted, optimizer, total_steps=settings.steps)


def make_optimizer(
    model: nn.Module, settings: Settings, undecayed: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Muon for hidden matrices and AdamW for the rest, or AdamW for all; decay on matrices but `undecayed` only."""
    if settings.optimizer == "muon":
        return MuonAdamW.from_model(
            model, muon_lr=settings.lr, lr=settings.lr / 10, weight_decay=settings.weight_decay
        )
    trained, without = [p for p in model.parameters() if p.requires_grad], {id(p) for p in undecayed}
    decayed = [p for p in trained if p.ndim > 1 and id(p) not in without]
    rest = [p for p in trained if p.ndim <= 1 or id(p) in without]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=(0.9, 0.95))
