"""Kinds of layers: how each one's weight is a matrix, how a batch goes through it, what it is exported as."""

from .attention import PROJECTIONS, MultiheadAttention, is_attention, leave_fast_path, projection_weights
from .kind import Kind
from .quantised import is_quantised, plain_weight, weight_bytes
from .table import KINDS, kind_of, unsupported_reason


__all__ = [
    "KINDS",
    "PROJECTIONS",
    "Kind",
    "MultiheadAttention",
    "is_attention",
    "is_quantised",
    "kind_of",
    "leave_fast_path",
    "plain_weight",
    "projection_weights",
    "unsupported_reason",
    "weight_bytes",
]
