"""Optimizer state through a rotation and a cut: what each entry is (table), its rule, and who applies it (carrier)."""

from .carrier import MomentCarrier, inner_optimizer
from .table import OPTIMIZERS


__all__ = ["OPTIMIZERS", "MomentCarrier", "inner_optimizer"]
