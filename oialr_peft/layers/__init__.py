"""Until its callers have moved to kinds/, weights/ and layer.py."""

from torch import nn

from ..kinds import PROJECTIONS, MultiheadAttention, is_attention, leave_fast_path, unsupported_reason
from ..layer import OIALRLayer
from ..layer import oialr_layers as _by_name


def oialr_layers(model: nn.Module) -> list[tuple[str, OIALRLayer]]:
    """The layers of a model with their names."""
    return list(_by_name(model).items())


def active_layers(model: nn.Module) -> list[tuple[str, OIALRLayer, str]]:
    """(name, layer, adapter) of the active layers."""
    return [
        (name, layer, adapter)
        for name, layer in oialr_layers(model)
        for adapter in layer.active_adapters
        if adapter in layer.weights
    ]


__all__ = [
    "PROJECTIONS",
    "MultiheadAttention",
    "OIALRLayer",
    "active_layers",
    "is_attention",
    "leave_fast_path",
    "oialr_layers",
    "unsupported_reason",
]
