"""The kinds of layers that are supported. A new kind is a file in this folder and a line in `KINDS`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv1d_input, conv2d_input, conv3d_input
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from transformers.pytorch_utils import Conv1D as TransformersConv1D

from .apart import TakenApart
from .attention import MultiheadAttention, is_attention, projection_weights
from .conv import Conv
from .embedding import Embedding
from .experts import Experts, ExpertsConv1D, ExpertsLinear, PerExpert, PerExpertTransposed, expert_weights, is_experts
from .kind import Kind
from .linear import Linear, TransposedLinear
from .quantised import can_be_read, is_quantised


KINDS: tuple[Kind, ...] = (
    Linear(nn.Linear),
    TransposedLinear(TransformersConv1D),
    Conv(nn.Conv1d, F.conv1d, conv1d_input),
    Conv(nn.Conv2d, F.conv2d, conv2d_input),
    Conv(nn.Conv3d, F.conv3d, conv3d_input),
    Embedding(nn.Embedding),
    PerExpert(ExpertsLinear),
    PerExpertTransposed(ExpertsConv1D),
)
SUPPORTED = (
    "torch.nn.Linear, Conv1d, Conv2d, Conv3d, MultiheadAttention and Embedding (without max_norm, sparse and "
    "scale_grad_by_freq), and transformers' Conv1D and experts"
)
PART_NAMES = frozenset((*MultiheadAttention.parts, *Experts.parts))  # names of layers that belong to one taken apart
# Subclasses of nn.Linear that write its product down in a forward of their own; by name, to import no model.
LIKE_LINEAR = frozenset({("transformers.models.falcon.modeling_falcon", "FalconLinear")})


def kind_of(layer: nn.Module) -> Kind | None:
    """The kind of a layer: that of its own class, or of the class whose forward it inherits or repeats unchanged."""
    if (type(layer).__module__, type(layer).__name__) in LIKE_LINEAR:
        return KINDS[0]
    if can_be_read(layer):  # bitsandbytes' have a forward of their own
        return KINDS[0]
    found = (k for k in KINDS if isinstance(layer, k.plain) and type(layer).forward is k.plain.forward)
    return next((kind for kind in found if kind.takes(layer)), None)


def unsupported_reason(layer: nn.Module, residual: bool = False) -> str | None:
    """Why a layer cannot be factorised, in words for an error message; None if it can.

    `residual`: its weight stays as it is, and may be quantised.
    """
    if computes_weight(layer):
        return (
            "computes its weight from other parameters (weight_norm, spectral_norm, pruning or the like), so that "
            "what is trained in its place would be lost; make it plain first, with "
            "`parametrize.remove_parametrizations`, `remove_weight_norm` or `prune.remove` of torch.nn.utils"
        )
    weight = getattr(layer, "weight", None)
    if isinstance(weight, UninitializedParameter):
        return f"is a {type(layer).__name__} without a shape yet; run one batch through the model first"
    if isinstance(weight, torch.Tensor) and weight.is_complex():
        return f"holds complex numbers ({weight.dtype}), which are not supported"
    if is_quantised(layer) and not (residual and can_be_read(layer)):
        kind = f"{type(weight).__name__} of {weight.dtype}" if isinstance(weight, torch.Tensor) else "packed"
        what = f"holds quantised weights ({type(layer).__name__}, {kind}), which are not supported yet"
        if can_be_read(layer):
            return f"{what} but by `OIALRConfig(residual=True)`; set it, or load the model in float32 or bfloat16"
        return f"{what}; load the model in float32, bfloat16 or float16"
    if not has_parts(layer) and kind_of(layer) is None:
        return f"is a {type(layer).__module__}.{type(layer).__name__}; supported are {SUPPORTED}"
    return None


def computes_weight(layer: nn.Module) -> bool:
    """Whether a weight of the layer is made from other parameters, by a parametrization or a hook."""
    modules = list(layer.modules()) if has_parts(layer) and not isinstance(layer, TakenApart) else [layer]
    if any(map(is_parametrized, modules)):
        return True
    if modules == [layer] and kind_of(layer) is None:
        return False
    weights = (getattr(module, name, None) for module in modules for name in ("weight", "in_proj_weight"))
    return any(isinstance(weight, torch.Tensor) and not isinstance(weight, nn.Parameter) for weight in weights)


def own_parameters(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Those of the layer itself, with those that its weight is made from."""
    return layer.parameters(recurse=computes_weight(layer))


def has_parts(layer: nn.Module) -> bool:
    """Whether the layer is taken apart into layers of its own, or was already: attention, fused experts.

    Not one of a compressed model, whose parts are layers that are found like any other.
    """
    if isinstance(layer, TakenApart):
        return not layer.stays
    return is_attention(layer) or is_experts(layer)


def take_apart(layer: Any) -> TakenApart:
    """The layer that `has_parts`, taken apart."""
    if isinstance(layer, TakenApart):
        return layer
    return MultiheadAttention(layer) if isinstance(layer, nn.MultiheadAttention) else Experts(layer)


def part_weights(layer: Any) -> dict[str, torch.Tensor]:
    """The weights of the parts by name, of a layer that is not yet taken apart."""
    return projection_weights(layer) if isinstance(layer, nn.MultiheadAttention) else expert_weights(layer)
