"""Where PEFT meets torch.nn: the layers that hold a weight as factors."""

from .attention import PROJECTIONS, MultiheadAttention, leave_fast_path
from .base import OIALRLayer
from .conv import Conv1d, Conv2d
from .dispatch import is_attention, unsupported_reason, wrap
from .linear import Linear, TransposedLinear
from .walk import active_layers, oialr_layers


__all__ = [
    "PROJECTIONS",
    "Conv1d",
    "Conv2d",
    "Linear",
    "MultiheadAttention",
    "OIALRLayer",
    "TransposedLinear",
    "active_layers",
    "is_attention",
    "leave_fast_path",
    "oialr_layers",
    "unsupported_reason",
    "wrap",
]
