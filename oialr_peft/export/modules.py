"""A layer as two plain layers in a row, for inference and ordinary training. No adapter, no SVD."""

from __future__ import annotations

from typing import Any, TypeGuard, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]

from ..compat.torch_ import has_hooks
from ..kinds import KINDS, Kind


# What PEFT tells its layers by; an adapter of `down` or `up` is no adapter of both.
_OF_TUNERS = frozenset(("base_layer", *vars(BaseTunerLayer)))


class Factored(nn.Module):
    """Two layers instead of one: `down` to the rank, `up` to the outputs; the bias is on `up`."""

    def __init__(self, down: nn.Module, up: nn.Module, kind: Kind = KINDS[0]) -> None:
        super().__init__()
        self.down, self.up = down, up
        self.kind = kind  # of the layer it stands for
        self.is_read = False  # whether the model computes with its weight, beside calling it

    def __getattr__(self, name: str) -> Any:
        """What models read of a layer that they call: a convolution's stride, the sizes of what goes in and out."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name in ("down", "up", "kind", "is_read") or name in _OF_TUNERS:
                raise
            if name == "embedding_dim":
                return self.up.out_features
            return getattr(self.up if name.startswith("out_") else self.down, name)

    @property
    def weight(self) -> torch.Tensor:
        """For code that asks a layer for its dtype or device (T5 does); formed where the model computes with it."""
        down, up = cast(torch.Tensor, self.down.weight), cast(torch.Tensor, self.up.weight)
        return self.kind.pair_product(self, down, up) if self.is_read else up

    @property
    def bias(self) -> torch.Tensor | None:
        return cast(Any, self.up).bias

    def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
        if _is_short(x) and _is_plain_linear(self.down) and _is_plain_linear(self.up):
            return _turned(x, self.down.weight, self.up.weight, self.up.bias)
        return self.up(self.down(x, *args), *args)


def _is_short(x: torch.Tensor) -> bool:
    """Whether x has the few rows, those of one sentence, for which MKL is slow at x @ weightᵀ with a small weight.

    There weight @ xᵀ takes half the time (DIARY: Latency of short inputs). Graphs that are recorded leave it to their
    compiler.
    """
    if torch.compiler.is_compiling() or is_tracing() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    return torch.backends.mkl.is_available() and 16 * x.shape[-1] <= x.numel() <= 48 * x.shape[-1]


def _is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether nothing would be missed by taking the layer's tensors: no adapter, no quantisation, no hook."""
    plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter  # torchao puts tensors of its own there
    return plain and not has_hooks(layer) and "forward" not in vars(layer)


def _turned(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    h = down @ x.reshape(-1, x.shape[-1]).T
    y = up @ h if bias is None else torch.addmm(bias.unsqueeze(1), up, h)
    return y.T.reshape(*x.shape[:-1], -1).contiguous()


def factored_like(layer: nn.Module, rank: int) -> Factored:
    """The two layers, without values, that take the place of `layer`; on the meta device, in its dtype.

    Raises:
        TypeError: the layer is of a kind that has no factored form.
    """
    kind = _kind(layer)
    with torch.device("meta"):
        return Factored(*kind.pair(layer, rank), kind).to(cast(torch.Tensor, layer.weight).dtype)


def plain_like(factored: Factored) -> nn.Module:
    """One layer of the original kind with the weight of two, multiplied in float32 and cast once."""
    down, up = cast(Any, factored.down), cast(Any, factored.up)
    with torch.device("meta"):
        layer: Any = factored.kind.unpaired(down, up)
    product = factored.kind.pair_product(layer, down.weight.float(), up.weight.float())
    layer.weight = nn.Parameter(product.to(factored.weight.dtype))
    if up.bias is not None:
        layer.bias = up.bias
    return layer


def has_factored_form(layer: nn.Module) -> bool:
    return any(isinstance(layer, kind.plain) for kind in KINDS)


def full_rank(layer: nn.Module) -> int:
    """min(out, in) of a layer's weight, per group for a convolution."""
    return min(_kind(layer).matrix_shape(layer)[-2:])


def _kind(layer: nn.Module) -> Kind:
    for kind in KINDS:
        if isinstance(layer, kind.plain):
            return kind
    raise TypeError(f"{type(layer).__module__}.{type(layer).__name__} has no factored form.")
