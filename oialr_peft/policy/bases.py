"""Which bases of a weight are frozen, and from when on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Bases:
    """How much of W = u @ sigma @ vh trains once it is factorised.

    `trained`: "frozen" trains sigma alone (the paper: both bases have settled). "longer" lets the basis of the longer
    side move: u @ sigma, or sigma @ vh of a wide weight, trains as one matrix, while the shorter side's basis is
    frozen. At full rank that is dense training for every shape, by an optimizer whose step does not depend on the
    basis. `freeze_at`: both are frozen by the first update at or after this optimizer step; None: never.
    """

    trained: Literal["frozen", "longer"] = "frozen"
    freeze_at: int | None = None

    def held(self, matrix_shape: tuple[int, ...], step: int) -> tuple[bool, bool]:
        """Whether the (left, right) basis of a weight of this shape is held, not part of what trains, at this step."""
        if self.trained == "frozen" or (self.freeze_at is not None and step >= self.freeze_at):
            return True, True
        rows, cols = matrix_shape[-2:]
        return rows < cols, rows >= cols
