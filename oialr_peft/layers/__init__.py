"""Where PEFT meets torch.nn: the layers that hold a weight as factors."""

from .base import OIALRLayer
from .dispatch import unsupported_reason, wrap
from .linear import Conv1D, Linear
from .targets import TargetSelection, select_targets
from .walk import active_layers, oialr_layers


__all__ = [
    "Conv1D",
    "Linear",
    "OIALRLayer",
    "TargetSelection",
    "active_layers",
    "oialr_layers",
    "select_targets",
    "unsupported_reason",
    "wrap",
]
