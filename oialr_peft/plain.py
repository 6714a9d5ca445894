"""A model as if it had no adapters: names, tensors and size of what a plain checkpoint of it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .layer import OIALRLayer
from .workers.saving import gathered


def plain_names(model: nn.Module) -> dict[str, str]:
    """{key of the state dict: its name in the plain model}, of base layers and saved modules; without adapters."""
    skipped, renamed = [], {}
    for name, module in model.named_modules():
        if isinstance(module, OIALRLayer):
            skipped += [f"{name}.oialr_"]
            renamed[f"{name}.base_layer."] = f"{name}."
        elif isinstance(module, AuxiliaryTrainingWrapper):
            active = module.active_adapters[0]
            skipped += [f"{name}.original_module."]
            skipped += [f"{name}.modules_to_save.{other}." for other in module.modules_to_save if other != active]  # type: ignore[union-attr,attr-defined]
            renamed[f"{name}.modules_to_save.{active}."] = f"{name}."
    names = {}
    for key in model.state_dict():
        if not key.startswith(tuple(skipped)):
            old = next((prefix for prefix in renamed if key.startswith(prefix)), None)
            names[key] = key if old is None else renamed[old] + key[len(old) :]
    return names


def plain_tensors(base: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model as if it had no adapters, under the names of the plain model."""
    state = base.state_dict()
    return gathered({name: state[key] for key, name in plain_names(base).items()})


class Amount(NamedTuple):
    """So many values, in so many bytes."""

    values: int
    bytes: int

    def plus(self, values: int, each: int) -> Amount:
        """With more values of `each` bytes."""
        return Amount(self.values + values, self.bytes + values * each)


@dataclass(frozen=True)
class ModelSize:
    """What checkpoints of a whole model hold, each tensor once.

    `dense`: as `merge_and_unload().save_pretrained` writes it; `compressed`: as `save_compressed` does. Part of both,
    and never factorised, are the `embeddings` and all `other` tensors: heads, norms, biases, running statistics,
    layers that were left alone.
    """

    dense: Amount
    compressed: Amount
    embeddings: Amount
    other: Amount

    @property
    def share(self) -> float:
        """Of the dense values that the compressed checkpoint holds."""
        return self.compressed.values / self.dense.values

    @property
    def rest(self) -> int:
        """How many values are no layer's that is factorised."""
        return self.embeddings.values + self.other.values


def model_size(model: nn.Module) -> ModelSize:
    """The size of a model with its active adapter, from shapes alone; also wrapped, or sharded over processes."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, OIALRLayer)}
    state, weights = model.state_dict(keep_vars=True), {f"{name}.base_layer.weight" for name in layers}
    rest = {id(state[key]): key for key in plain_names(model) if key not in weights}
    embeddings = other = Amount(0, 0)
    for key in rest.values():
        tensor = state[key]
        if isinstance(model.get_submodule(key.rpartition(".")[0]), nn.Embedding):
            embeddings = embeddings.plus(tensor.numel(), tensor.element_size())
        else:
            other = other.plus(tensor.numel(), tensor.element_size())
    dense = compressed = Amount(*map(sum, zip(embeddings, other, strict=True)))
    for layer in layers.values():
        each, full = layer.base_weight.element_size(), math.prod(layer.matrix_shape)
        active = next((layer.weights[name] for name in layer.active_adapters if name in layer.weights), None)
        dense = dense.plus(full, each)
        compressed = compressed.plus(full if active is None else active.stored_size, each)
    return ModelSize(dense, compressed, embeddings, other)
