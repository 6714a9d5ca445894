"""StabilityCallback: does the basis of each weight settle while the model trains? (paper, section 3)"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from ..files.draft import replace_file
from ..kinds.table import kind_of
from ..layer import OIALRLayer, adapted_weights
from ..linalg import polar, stability
from ..workers.sharding import is_sharded


class StabilityCallback(TrainerCallback):
    """Measures how far U Vᵀ of every weight turned between two checkpoints, in the Trainer and for any model.

    The measure is trace(Q₁ᵀ Q₂) / n for the polar factors Q = U Vᵀ, 1 where a basis stayed. Linear layers and
    convolutions count, dense or with an OIALR adapter; of `nn.MultiheadAttention` its output projection. The first
    checkpoint is the model at the start. `oialr_peft.report.plots.plot_stability` draws the file.

    Args:
        path: JSON file that is written anew at every checkpoint; its folder is made.
        every: optimizer steps between two checkpoints. `None` (default): the end of each epoch. An SVD of every weight
            is due at each, so do not go below a few hundred steps with large models.

    A run that is resumed goes on with the file's earlier figures; what lies between the last checkpoint before and the
    start is not measured. Only the first process measures.

    Raises:
        ValueError: `every` is below 1, or the model holds no such layer.
        NotImplementedError: the weights are sharded over processes (FSDP2).
    """

    def __init__(self, path: str | os.PathLike, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"`every` counts optimizer steps and must be at least 1; got {every}. None: each epoch.")
        self.path, self.every = Path(path), every
        self._points: list[dict[str, Any]] = []
        self._factors: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        known = json.loads(self.path.read_text())["points"] if state.global_step and self.path.exists() else []
        self._points = [point for point in known if point["step"] <= state.global_step]
        self._factors = _factors(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is None:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        before, self._factors = self._factors, _factors(model)
        found = {name: stability(before[name], factor) for name, factor in self._factors.items()}
        point = {"step": state.global_step, "epoch": state.epoch, "mean": sum(found.values()) / len(found)}
        self._points.append({**point, "stability": found})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps({"points": self._points}, indent=1).encode())


def _factors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The polar factor of every weight, by the name of its layer, on the CPU."""
    adapted = adapted_weights(model)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, OIALRLayer))
    matrices = {n: m for n, m in model.named_modules() if kind_of(m) and not isinstance(m, nn.Embedding)}
    layers = {name: module for name, module in matrices.items() if not name.startswith(inside)}
    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    weights |= {name: weight.core for name, weight in adapted.items()}
    if not weights:
        raise ValueError(
            f"{type(model).__name__} holds no linear layer and no convolution, so no basis can be measured; leave "
            "StabilityCallback away."
        )
    if any(is_sharded(tensor) for tensor in weights.values()):
        raise NotImplementedError(
            "StabilityCallback needs whole weights, but FSDP2 shards them. Use one process or DDP."
        )
    return {name: _factor(adapted.get(name, weight)) for name, weight in weights.items()}


@torch.no_grad()
def _factor(weight: Any) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return polar(weight.float().flatten(1)).cpu()
    return polar(weight.dense(torch.float32).flatten(1), weight.rank).cpu()
