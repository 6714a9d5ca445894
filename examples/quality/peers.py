"""The peers: plain W = A B, GaLore, and LoRA merged into its weight at intervals, with restarts as ReLoRA's."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from methods import Settings, Trained, hidden, make_optimizer, rank_of
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn


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

    @torch.no_grad()
    def decay(self, share: float) -> None:
        """A step down the gradient of half the squared Frobenius norm of the product (Khodak et al. 2021)."""
        up, down = self.up.weight, self.down.weight
        of_up, of_down = up @ (down @ down.mT), (up.mT @ up) @ down
        up.sub_(of_up, alpha=share)
        down.sub_(of_down, alpha=share)


def split(model: nn.Module, name: str, settings: Settings) -> tuple[Any, Any]:
    """Put two factors in the place of a layer; both, the layer first."""
    layer: Any = model.get_submodule(name)
    factors = LowRank(layer, rank_of(layer, settings)).to(layer.weight.device)
    model.set_submodule(name, factors)
    return layer, factors


def low_rank(model: nn.Module, settings: Settings, *, frobenius: bool = False) -> Trained:
    """Plain W = A B in every hidden layer, from the first step on; `frobenius`: decay of the product, by AdamW."""
    layers = [split(model, name, settings)[1] for name in hidden(model)]
    if not frobenius:
        return Trained(model, make_optimizer(model, settings))
    if settings.optimizer != "adamw":
        raise ValueError(f"Decay of the product is for AdamW here; got {settings.optimizer}. Use low_rank with Muon.")
    factors = [factor.weight for layer in layers for factor in (layer.up, layer.down)]
    optimizer = make_optimizer(model, settings, undecayed=factors)

    def decay() -> None:
        for layer in layers:
            layer.decay(optimizer.param_groups[0]["lr"] * settings.weight_decay)

    return Trained(model, optimizer, decay)


def low_rank_late(model: nn.Module, settings: Settings, *, delay: float = 0.3) -> Trained:
    """W = A B after as long a dense phase as OIALR's: an SVD of each weight then, both factors trained afresh."""
    optimizer, at, steps = make_optimizer(model, settings), round(delay * settings.steps), itertools.count(1)

    def after_step() -> None:
        if next(steps) != at:
            return
        for name in hidden(model):
            layer, factors = split(model, name, settings)
            group = next(g for g in optimizer.param_groups if any(p is layer.weight for p in g["params"]))
            group["params"] = [p for p in group["params"] if p is not layer.weight]
            group["params"] += [factors.down.weight, factors.up.weight]
            optimizer.state.pop(layer.weight, None)

    return Trained(model, optimizer, after_step)


def galore(model: nn.Module, settings: Settings) -> Trained:
    """Dense weights whose AdamW moments live in a projection, made anew 20 times in the run; the paper's scale."""
    from galore_torch import GaLoreAdamW  # pyright: ignore[reportMissingImports]  # of the benchmarks' extra alone

    if settings.optimizer != "adamw":
        raise ValueError(f"GaLore's optimizer is its own AdamW; got {settings.optimizer}. Use --optimizer adamw.")
    layers: list[Any] = [model.get_submodule(name) for name in hidden(model)]
    fields: dict[str, Any] = {"update_proj_gap": max(1, settings.steps // 20), "scale": 0.25, "proj_type": "std"}
    fields["weight_decay"] = settings.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [layer.weight], "rank": rank_of(layer, settings), **fields} for layer in layers
    ]
    projected = {id(layer.weight) for layer in layers}
    for group in make_optimizer(model, settings).param_groups:
        others = [p for p in group["params"] if id(p) not in projected]
        groups.append({"params": others, "weight_decay": group["weight_decay"]})
    return Trained(
        model, GaLoreAdamW(groups, lr=settings.lr, betas=(0.9, 0.95), eps=1e-8, no_deprecation_warning=True)
    )


def merged_lora(model: Any, settings: Settings, *, restart: bool, delay: float = 0.3, every: float = 0.1) -> Trained:
    """LoRA merged at intervals, after as long a dense phase as OIALR's; `delay` and `every` are shares of the run.

    `restart`: as ReLoRA, the adapters' moments start afresh with each merge, and the rate is warmed up again.
    """
    names = hidden(model)
    rank = rank_of(model.get_submodule(names[0]), settings)  # the shorter side is the width in all of them
    adapted: Any = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    optimizer = make_optimizer(adapted.requires_grad_(True), settings)
    at = range(round(delay * settings.steps), settings.steps, max(1, round(every * settings.steps)))
    merging = Merging(adapted, optimizer, at, restart)
    return Trained(adapted, optimizer, merging.after_step, merging.rate)


class Merging:
    """LoRA takes over from the dense weights at the first of the steps `at`, and is merged into them at the others."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, at: range, restart: bool) -> None:
        self.model, self.optimizer, self.at, self.restart = model, optimizer, at, restart
        self.layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self.warm = max(1, at.step // 6)
        self.steps, self.started = 0, -self.warm
        model.base_model.disable_adapter_layers()

    def after_step(self) -> None:
        self.steps += 1
        if self.steps not in self.at:
            return
        if self.steps == self.at.start:
            self.model.base_model.enable_adapter_layers()
        for layer in self.layers:
            self._merge(layer)
        self.started = self.steps if self.restart else self.started

    def rate(self, step: int) -> float:
        """The factor of the warm-up after a restart."""
        return min(1.0, (step - self.started + 1) / self.warm)

    @torch.no_grad()
    def _merge(self, layer: Any) -> None:
        weight = layer.base_layer.weight
        weight.requires_grad_(False).add_(layer.get_delta_weight("default"))
        weight.grad = None
        self.optimizer.state.pop(weight, None)
        layer.reset_lora_parameters("default", True)
        for part in (layer.lora_A, layer.lora_B) if self.restart else ():
            self.optimizer.state.pop(part["default"].weight, None)
