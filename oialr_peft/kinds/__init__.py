"""Kinds of layers: how each one's weight is a matrix, how a batch goes through it, what it is exported as."""

from .apart import TakenApart
from .attention import MultiheadAttention, leave_fast_path
from .kind import Kind
from .quantised import is_quantised, plain_weight, weight_bytes
from .table import (
    KINDS,
    PART_NAMES,
    computes_weight,
    has_parts,
    kind_of,
    own_parameters,
    part_weights,
    take_apart,
    unsupported_reason,
)


__all__ = [
    "KINDS",
    "PART_NAMES",
    "Kind",
    "MultiheadAttention",
    "TakenApart",
    "computes_weight",
    "has_parts",
    "is_quantised",
    "kind_of",
    "leave_fast_path",
    "own_parameters",
    "part_weights",
    "plain_weight",
    "take_apart",
    "unsupported_reason",
    "weight_bytes",
]
