"""Where PEFT meets torch.nn: the layers that hold a weight as factors."""

from .base import OIALRLayer
from .dispatch import unsupported_reason, wrap
from .linear import Conv1D, Linear
from .targets import TargetSelection, select_targets


__all__ = ["Conv1D", "Linear", "OIALRLayer", "TargetSelection", "select_targets", "unsupported_reason", "wrap"]
