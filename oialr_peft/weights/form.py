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
    def side(self) -> str | None:
        """The side whose basis is part of the core: "left", "right", or None where both are held, or neither."""
        if self.left == self.right:
            return None
        return "right" if self.left else "left"

    def shapes(self, matrix_shape: tuple[int, ...], rank: int) -> dict[Slot, tuple[int, ...]]:
        """The shape of each tensor that is held of a matrix (rows, cols), or of several, at `rank`."""
        *groups, rows, cols = matrix_shape
        core = (*groups, rank if self.left else rows, rank if self.right else cols)
        found = {U: (*groups, rows, rank), self.core: core, VH: (*groups, rank, cols)}
        return {slot: shape for slot, shape in found.items() if slot is self.core or slot in self.bases}

    @property
    def bases(self) -> tuple[Slot, ...]:
        """Where the bases are."""
        return tuple(slot for slot, held in ((U, self.left), (VH, self.right)) if held)


def form_of(side: str | None) -> Form:
    """The form of a factored weight, by the side whose basis trains as part of the core."""
    return {"left": LEFT_TRAINS, "right": RIGHT_TRAINS}.get(side or "", FACTORED)


DENSE = Form(left=False, right=False)  # before factorisation
FACTORED = Form(left=True, right=True)  # the paper's
LEFT_TRAINS = Form(left=False, right=True)  # (rows, rank) @ right: the left side trains as the core
RIGHT_TRAINS = Form(left=True, right=False)  # left @ (rank, cols)
