"""A model as if it had no adapters: names, tensors and size of what a plain checkpoint of it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .layer import OIALRLayer, adapted_weights, oialr_layers
from .units import beginnings, short
from .weights import AdaptedWeight
from .workers.saving import gathered


def plain_names(model: nn.Module) -> dict[str, str]:
    """{key of the state dict: its name in the plain model}, of base layers and saved modules; without adapters."""
    layers, skipped, renamed = set(), set(), {}  # beginnings of keys
    for name, module in model.named_modules():
        if isinstance(module, OIALRLayer):
            layers.add(f"{name}.")
            renamed[f"{name}.base_layer."] = f"{name}."
        elif isinstance(module, ModulesToSaveWrapper):
            copies = {f"{name}.modules_to_save.{adapter}." for adapter in module.modules_to_save}
            # With an adapter that has no copy of its own PEFT computes with the module itself.
            active = {f"{name}.modules_to_save.{adapter}." for adapter in module.active_adapters} & copies
            used = next(iter(active), f"{name}.original_module.")
            skipped |= {f"{name}.original_module.", *copies} - {used}
            renamed[used] = f"{name}."
    names = {}
    for key in model.state_dict():
        starts = beginnings(key)
        if skipped.isdisjoint(starts) and not any(key.startswith("oialr_", len(s)) for s in starts if s in layers):
            old = next((start for start in starts if start in renamed), None)
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
    layers that were left alone. `each`: the bytes of one stored value of each layer that is factorised.
    """

    dense: Amount
    compressed: Amount
    embeddings: Amount
    other: Amount
    each: dict[str, int]

    @property
    def share(self) -> float:
        """Of the dense values that the compressed checkpoint holds."""
        return self.compressed.values / self.dense.values

    @property
    def rest(self) -> Amount:
        """What is no layer's that is factorised."""
        return Amount(self.embeddings.values + self.other.values, self.embeddings.bytes + self.other.bytes)

    def with_ranks(self, weights: Mapping[str, AdaptedWeight]) -> ModelSize:
        """The size at the ranks that the weights, by the names of their layers, have now."""
        return replace(self, compressed=self.holding({name: weight.stored_size for name, weight in weights.items()}))

    def holding(self, layers: Mapping[str, int]) -> Amount:
        """What a checkpoint holds with so many values in each of the layers, by their names, and all the rest."""
        amount = self.rest
        for name, values in layers.items():
            amount = amount.plus(values, self.each[name])
        return amount

    def __str__(self) -> str:
        compressed, dense, embeddings, other = (
            short(amount.bytes) for amount in (self.compressed, self.dense, self.embeddings, self.other)
        )
        return (
            f"{compressed} compressed, {self.share:.1%} of the dense model's {dense}; in both {embeddings} of "
            f"embeddings and {other} of all else that is not factorised"
        )


def model_size(model: nn.Module) -> ModelSize:
    """The size of a model with its active adapter, from shapes alone; also wrapped, or sharded over processes."""
    state, weights = model.state_dict(keep_vars=True), adapted_weights(model)
    wrapped = {f"{n}.base_layer.weight" for n, module in model.named_modules() if isinstance(module, OIALRLayer)}
    rest = {id(state[key]): key for key in plain_names(model) if not key.startswith(tuple(wrapped) or "\0")}
    modules = dict(model.named_modules())  # bitsandbytes' keys go beyond them
    embeddings = other = Amount(0, 0)
    for key in rest.values():
        count, each = state[key].numel(), state[key].element_size()
        if isinstance(modules.get(key.rpartition(".")[0]), nn.Embedding):
            embeddings = embeddings.plus(count, each)
        else:
            other = other.plus(count, each)
    layers = oialr_layers(model)
    for name, layer in layers.items():
        if name not in weights:  # another adapter's alone
            other = other.plus(math.prod(layer.matrix_shape), layer.base_weight.element_size())
    each = {name: layers[name].base_weight.element_size() for name in weights}
    size = ModelSize(Amount(0, 0), Amount(0, 0), embeddings, other, each)
    dense = size.holding({name: math.prod(weight.matrix_shape) for name, weight in weights.items()})
    return replace(size, dense=dense).with_ranks(weights)
