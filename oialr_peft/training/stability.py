"""StabilityCallback: does the basis of each weight settle, and before its mixing? (paper, section 3)"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import TrainerCallback

from ..files.draft import replace_file
from ..kinds.table import kind_of
from ..layer import OIALRLayer, adapted_weights
from ..linalg import mixing, polar, similarity, stability
from ..workers.sharding import is_sharded


class StabilityCallback(TrainerCallback):
    """Measures how far basis and mixing of every weight moved between two checkpoints, in the Trainer, for any model.

    Of the basis it is trace(Q₁ᵀ Q₂) / n for the polar factors Q = U Vᵀ, in the file as `stability`, the mean over the
    layers as `mean`. Of the mixing, R of W = Q R, it is 1 - ‖R₁ - R₂‖ / (‖R₁‖ + ‖R₂‖), as `mixing` and `mixing_mean`;
    the authors name the Euclidean distance and no formula. Each is 1 where nothing moved. Linear layers and
    convolutions count, dense or with an OIALR adapter; of `nn.MultiheadAttention` its output projection. The first
    checkpoint is the model at the start. `oialr_peft.report.plots.plot_stability` draws the file.

    Args:
        path: JSON file that is written anew at every checkpoint; its folder is made.
        every: optimizer steps between two checkpoints. `None` (default): the end of each epoch. An SVD and a QR of
            every weight are due at each, so do not go below a few hundred steps with large models.

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
        self._parts: dict[str, Parts] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        known = json.loads(self.path.read_text())["points"] if state.global_step and self.path.exists() else []
        self._points = [point for point in known if point["step"] <= state.global_step]
        self._parts = _parts(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, kwargs["model"])

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.every is None:
            self._measure(state, kwargs["model"])

    def _measure(self, state: Any, model: nn.Module) -> None:
        if not state.is_world_process_zero:
            return
        before, self._parts = self._parts, _parts(model)
        bases = {name: stability(before[name].basis, now.basis) for name, now in self._parts.items()}
        mixings = {name: similarity(before[name].mixing, now.mixing) for name, now in self._parts.items()}
        means = {"mean": sum(bases.values()) / len(bases), "mixing_mean": sum(mixings.values()) / len(mixings)}
        point = {"step": state.global_step, "epoch": state.epoch, **means}
        self._points.append({**point, "stability": bases, "mixing": mixings})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, json.dumps({"points": self._points}, indent=1).encode())


class Parts(NamedTuple):
    """What is compared of a weight, on the CPU."""

    basis: torch.Tensor  # U Vᵀ
    mixing: torch.Tensor  # R of W = Q R


def _parts(model: nn.Module) -> dict[str, Parts]:
    """Of every weight, by the name of its layer."""
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
    return {name: _parts_of(adapted.get(name, weight)) for name, weight in weights.items()}


@torch.no_grad()
def _parts_of(weight: Any) -> Parts:
    plain = isinstance(weight, torch.Tensor)
    matrix = (weight.float() if plain else weight.dense(torch.float32)).flatten(1)
    return Parts(polar(matrix, None if plain else weight.rank).cpu(), mixing(matrix).cpu())
