"""A layer as two plain layers in a row, for inference and ordinary training. No adapter, no SVD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard, cast

import torch
from torch import nn
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]
from transformers.pytorch_utils import Conv1D as TransformersConv1D


class Factored(nn.Module):
    """Two layers instead of one: `down` to the rank, `up` to the outputs; the bias is on `up`."""

    def __init__(self, down: nn.Module, up: nn.Module, kind: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.kind = kind  # of the layer it stands for

    @property
    def in_features(self) -> int:
        """For code that asks a layer for its sizes, as Wav2Vec2's initialisation does."""
        return cast(nn.Linear, self.down).in_features

    @property
    def out_features(self) -> int:
        return cast(nn.Linear, self.up).out_features

    @property
    def weight(self) -> torch.Tensor:
        """For code that asks a layer for its dtype or device (T5 does); the layer's own weight is never formed."""
        return cast(torch.Tensor, self.up.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        return cast(Any, self.up).bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if _is_short(x) and _is_plain_linear(self.down) and _is_plain_linear(self.up):
            return _turned(x, self.down.weight, self.up.weight, self.up.bias)
        return self.up(self.down(x))


def _is_short(x: torch.Tensor) -> bool:
    """Whether x has the few rows, those of one sentence, for which MKL is slow at x @ weightᵀ with a small weight.

    There weight @ xᵀ takes half the time (DIARY: Latency of short inputs). Graphs that are recorded leave it to their
    compiler.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkl.is_available():
        return False
    return not is_tracing() and not torch.compiler.is_compiling() and 16 * x.shape[-1] <= x.numel() <= 48 * x.shape[-1]


def _is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether nothing would be missed by taking the layer's tensors: no adapter, no quantisation, no hook."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is nn.Linear and not hooked and "forward" not in vars(layer)


def _turned(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    h = down @ x.reshape(-1, x.shape[-1]).T
    y = up @ h if bias is None else torch.addmm(bias.unsqueeze(1), up, h)
    return y.T.reshape(*x.shape[:-1], -1).contiguous()


def _linear(layer: nn.Linear, rank: int) -> Factored:
    bias = layer.bias is not None
    return Factored(nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias))


def _conv1d(layer: Any, rank: int) -> Factored:
    rows, cols = layer.weight.shape  # stored (in, out)
    return Factored(nn.Linear(rows, rank, bias=False), nn.Linear(rank, cols, bias=True), TransformersConv1D)


def _conv(layer: Any, rank: int) -> Factored:
    # Not the layer's own class: one that inherits the forward may take other arguments.
    kind: Any = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    inner = rank * layer.groups
    down = kind(
        layer.in_channels,
        inner,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    up = kind(inner, layer.out_channels, 1, groups=layer.groups, bias=layer.bias is not None)
    return Factored(down, up, kind)


_BUILDERS: dict[type[nn.Module], Callable[[Any, int], Factored]] = {
    nn.Linear: _linear,
    TransformersConv1D: _conv1d,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
}


def factored_like(layer: nn.Module, rank: int) -> Factored:
    """The two layers, without values, that take the place of `layer`; on the meta device, in its dtype.

    Raises:
        TypeError: the layer is of a kind that has no factored form.
    """
    for kind, build in _BUILDERS.items():
        if isinstance(layer, kind):
            with torch.device("meta"):
                return build(layer, rank).to(cast(torch.Tensor, layer.weight).dtype)
    raise TypeError(f"{type(layer).__module__}.{type(layer).__name__} has no factored form.")


def full_rank(layer: nn.Module) -> int:
    """min(out, in) of a layer's weight, per group for a convolution."""
    weight = cast(torch.Tensor, layer.weight)
    rows = weight.shape[0] // getattr(layer, "groups", 1)
    return min(rows, math.prod(weight.shape[1:]))


def two_weights(base: nn.Module, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(down.weight, up.weight) of the factored form of `base`, from its stored weight = left @ right.

    `left` (rows, rank) and `right` (rank, cols), with a leading dimension for the groups of a convolution.
    """
    if isinstance(base, TransformersConv1D):
        return left.mT, right.mT
    if isinstance(base, (nn.Conv1d, nn.Conv2d)):
        kernel = (base.in_channels // base.groups, *base.kernel_size)  # the weight itself may have been freed
        down, up = right.reshape(-1, *kernel), left.reshape(-1, left.shape[-1])
        return down, up.reshape(*up.shape, *(1 for _ in base.kernel_size))
    return right, left


def dense_weight(factored: Factored, layer: nn.Module) -> torch.Tensor:
    """The weight of `layer`, whose factored form is given; multiplied in float32 and cast once."""
    down, up = (cast(torch.Tensor, part.weight).float() for part in (factored.down, factored.up))
    groups = getattr(layer, "groups", 1)
    left, right = up.reshape(groups, -1, up.shape[1]), down.reshape(groups, -1, math.prod(down.shape[1:]))
    product = (left @ right).reshape(-1, *down.shape[1:])
    product = product.mT if isinstance(layer, TransformersConv1D) else product
    return product.to(factored.weight.dtype)
