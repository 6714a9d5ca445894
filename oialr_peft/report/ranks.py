"""rank_report: what a model holds and costs, layer by layer, against its dense self."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from ..errors import NO_ADAPTER
from ..kinds import weight_bytes
from ..layer import adapted_weights, oialr_layers
from ..linalg import forward_multiplications
from ..plain import ModelSize, model_size
from ..weights import AdaptedWeight


class _Text(io.StringIO):
    """Text for standard output: rich draws with plain letters where that does not take others."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(sys.stdout, "encoding", None) or "utf-8"


@dataclass(frozen=True)
class LayerReport:
    """One layer: its parameters, bytes and forward FLOPs (two per multiplication) per input row or, of a convolution,
    per output position, biases apart.

    What counts as held: u, sigma and vh, or the dense weight; and the dense base weight where it is kept. `compressed`
    are the parameters that `save_compressed` would write: two factors, or the dense weight where that is less.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    trainable: int
    parameters: int
    bytes: int
    flops: int
    compressed: int
    dense_parameters: int
    dense_bytes: int
    dense_flops: int


@dataclass(frozen=True)
class RankReport:
    """`layers`: a LayerReport for each targeted layer; `trainable` and `total`: parameters of the whole model, where
    total counts everything held: weights, frozen factors and, where kept, dense base weights; `size`: of the whole
    model in files, dense and compressed, with its embeddings."""

    layers: list[LayerReport]
    trainable: int
    total: int
    size: ModelSize

    def __str__(self) -> str:
        table = Table(title="OIALR ranks", caption=self._caption(), caption_justify="left")
        table.add_column("layer", overflow="fold")
        for heading in ("shape", "rank", "trainable", "held", "of dense", "compressed", "FLOPs of dense"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            table.add_row(
                escape(layer.name),
                "x".join(map(str, layer.shape)),
                str(layer.rank),
                f"{layer.trainable:,}",
                f"{layer.parameters:,}",
                f"{layer.parameters / layer.dense_parameters:.0%}",
                f"{layer.compressed / layer.dense_parameters:.0%}",
                f"{layer.flops / layer.dense_flops:.0%}",
            )
        text = _Text()
        Console(file=text, width=140, force_jupyter=False).print(table)
        return text.getvalue()

    def _caption(self) -> str:
        held, dense = sum(x.parameters for x in self.layers), sum(x.dense_parameters for x in self.layers)
        return (
            f"{len(self.layers)} layers hold {held:,} parameters, {held / dense:.0%} of dense; the model trains "
            f"{self.trainable:,} of {self.total:,}\nin files: {self.size}"
        )


def rank_report(model: nn.Module) -> RankReport:
    """Shape, rank, parameters, bytes and FLOPs of every OIALR layer against dense; `print` shows a table.

    Raises:
        TypeError: the model has no active OIALR adapter.
    """
    weights, layers = adapted_weights(model), oialr_layers(model)
    if not weights:
        raise TypeError(f"{type(model).__name__} has no active OIALR adapter to report on. {NO_ADAPTER}")
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    return RankReport(
        layers=[_layer_report(name, weight, layers[name].base_weight) for name, weight in weights.items()],
        trainable=sum(t.numel() for t in tensors if t.requires_grad),
        total=sum(t.numel() for t in tensors),
        size=model_size(model),
    )


def _layer_report(name: str, weight: AdaptedWeight, base: torch.Tensor) -> LayerReport:
    """`base` is empty once it was freed."""
    *groups, rows, cols = weight.matrix_shape
    rank, count = weight.rank, math.prod(groups)
    own, multiplications = count * rows * cols, rows * cols
    if weight.is_factored:
        own, multiplications = weight.held_size, forward_multiplications(cols, rank, rows)
        if weight.base is not None:
            multiplications = rows * cols + rank * (rows + cols)
    return LayerReport(
        name=name,
        shape=weight.shape,
        rank=rank,
        trainable=weight.trainable_size,
        parameters=own + base.numel(),
        bytes=weight.held_bytes + weight_bytes(base),
        flops=2 * count * multiplications,
        compressed=weight.stored_size,
        dense_parameters=count * rows * cols,
        dense_bytes=count * rows * cols * base.element_size(),
        dense_flops=2 * count * rows * cols,
    )
