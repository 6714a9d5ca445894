"""How an adapter holds the weight of a layer: which tensors, under which names, and which of them trains."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..compat.peft_ import BufferDict
from ..linalg import Factors


class Slot(NamedTuple):
    """A place for one tensor per adapter on a layer. All of them are saved, and named in files as here.

    What `trains` is a Parameter that optimizers hold; the rest are buffers, which change at updates only.
    """

    name: str
    trains: bool

    def store(self) -> nn.ParameterDict | BufferDict:
        """The empty dict that holds the slot's tensor of each adapter, as PEFT wants it on the layer."""
        return nn.ParameterDict() if self.trains else BufferDict(persistent=True)


SIGMA = Slot("oialr_sigma", trains=True)
WEIGHT = Slot("oialr_weight", trains=True)
U = Slot("oialr_u", trains=False)
VH = Slot("oialr_vh", trains=False)
SLOTS = (SIGMA, WEIGHT, U, VH)
TRAINED = tuple(slot.name for slot in SLOTS if slot.trains)
FROZEN = tuple(slot.name for slot in SLOTS if not slot.trains)


class Form(NamedTuple):
    """Which bases of W = left @ core @ right are held; one that is not counts as the identity.

    The core is the one tensor that trains in every form, so a change of form is a change of bases like any other.
    """

    left: bool
    right: bool

    @classmethod
    def of(cls, factors: Factors) -> Form:
        """The form in which these factors are held."""
        return cls(factors.left is not None, factors.right is not None)

    @property
    def core(self) -> Slot:
        """Where the core is."""
        return SIGMA if self.left or self.right else WEIGHT

    @property
    def bases(self) -> tuple[Slot, ...]:
        """Where the bases are."""
        return tuple(slot for slot, held in ((U, self.left), (VH, self.right)) if held)


DENSE = Form(left=False, right=False)  # before factorisation
FACTORED = Form(left=True, right=True)  # the paper's
LEFT_TRAINS = Form(left=False, right=True)  # (rows, rank) @ right: the left side trains as the core
RIGHT_TRAINS = Form(left=True, right=False)  # left @ (rank, cols)
