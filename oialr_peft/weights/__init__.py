"""One adapted weight: its forms, the slots that hold its tensors, and how it changes."""

from .adapted import AdaptedWeight, Weights
from .form import (
    DENSE,
    FACTORED,
    FROZEN,
    LEFT_TRAINS,
    RIGHT_TRAINS,
    SIGMA,
    SLOTS,
    TRAINED,
    VH,
    WEIGHT,
    Form,
    Slot,
    U,
    form_of,
)
from .incoming import make_room


__all__ = [
    "DENSE",
    "FACTORED",
    "FROZEN",
    "LEFT_TRAINS",
    "RIGHT_TRAINS",
    "SIGMA",
    "SLOTS",
    "TRAINED",
    "VH",
    "WEIGHT",
    "AdaptedWeight",
    "Form",
    "Slot",
    "U",
    "Weights",
    "form_of",
    "make_room",
]
