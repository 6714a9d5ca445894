"""Which layers are supported, and the class that wraps each."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from .attention import PROJECTIONS, MultiheadAttention, projection_weights
from .base import OIALRLayer
from .conv import Conv1d, Conv2d
from .linear import Linear, TransposedLinear


_WRAPPERS: dict[type[nn.Module], type[OIALRLayer]] = {
    nn.Linear: Linear,
    TransformersConv1D: TransposedLinear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
}
SUPPORTED = "torch.nn.Linear, Conv1d, Conv2d and MultiheadAttention, and transformers' Conv1D"


def is_attention(layer: nn.Module) -> bool:
    """Whether the layer is taken apart into its projections, or was already."""
    plain = isinstance(layer, nn.MultiheadAttention) and type(layer).forward is nn.MultiheadAttention.forward
    return plain or isinstance(layer, MultiheadAttention)


class Part(NamedTuple):
    """One weight that is factored: the name of what holds it, its shape as a matrix (or several), its values."""

    name: str
    shape: tuple[int, ...]
    weight: torch.Tensor


def parts(name: str, layer: nn.Module) -> list[Part]:
    """The weights of a supported layer: its own, or of attention those of the projections."""
    if isinstance(layer, OIALRLayer):
        return [Part(name, layer.matrix_shape, layer.base_weight)]
    if isinstance(layer, MultiheadAttention):
        return [part for child in PROJECTIONS for part in parts(f"{name}.{child}", getattr(layer, child))]
    if isinstance(layer, nn.MultiheadAttention):
        weights = projection_weights(layer)
        return [Part(f"{name}.{child}", tuple(weight.shape), weight) for child, weight in weights.items()]
    wrapper = _wrapper(layer)
    assert wrapper is not None, "callers check unsupported_reason first"
    return [Part(name, wrapper.matrix_shape_of(layer), cast(torch.Tensor, layer.weight))]


def _wrapper(layer: nn.Module) -> type[OIALRLayer] | None:
    """The wrapper of a layer: of its own class, or of the class whose forward it inherits unchanged."""
    for kind, wrapper in _WRAPPERS.items():
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            return wrapper
    return None


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer holds integer or packed weights. Told by class too: 4-bit storage can have a float dtype."""
    if hasattr(layer, "qweight") or hasattr(layer, "W_q"):
        return True
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return False
    plain = type(weight) in (torch.Tensor, nn.Parameter) and type(weight.data) is torch.Tensor
    return not plain or not weight.dtype.is_floating_point or weight.element_size() < 2


def unsupported_reason(layer: nn.Module) -> str | None:
    """Why a layer cannot be factorised, in words for an error message; None if it can."""
    layer = layer.get_base_layer() if isinstance(layer, OIALRLayer) else layer
    if is_quantised(layer):
        weight = getattr(layer, "weight", None)
        kind = f"{type(weight).__name__} of {weight.dtype}" if isinstance(weight, torch.Tensor) else "packed"
        return (
            f"holds quantised weights ({type(layer).__name__}, {kind}), which are not supported yet; load the model "
            "in float32, bfloat16 or float16"
        )
    if not is_attention(layer) and _wrapper(layer) is None:
        return f"is a {type(layer).__module__}.{type(layer).__name__}; supported are {SUPPORTED}"
    return None


def wrap(layer: nn.Module) -> OIALRLayer:
    """The OIALR layer around a supported layer other than attention."""
    wrapper = _wrapper(layer)
    assert wrapper is not None, "callers check unsupported_reason first"
    return wrapper(layer)
