"""Which layers are supported, and the class that wraps each."""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from .base import OIALRLayer
from .linear import Conv1D, Linear


_WRAPPERS: dict[type[nn.Module], type[Linear]] = {nn.Linear: Linear, TransformersConv1D: Conv1D}
SUPPORTED = "torch.nn.Linear and transformers' Conv1D"


def _wrapper(layer: nn.Module) -> type[Linear] | None:
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
    if _wrapper(layer) is None:
        return f"is a {type(layer).__module__}.{type(layer).__name__}; supported are {SUPPORTED}"
    return None


def wrap(layer: nn.Module) -> Linear:
    """The OIALR layer around a supported layer."""
    wrapper = _wrapper(layer)
    assert wrapper is not None, "callers check unsupported_reason first"
    return wrapper(layer)
