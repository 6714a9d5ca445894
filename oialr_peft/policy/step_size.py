"""How far one optimizer step moves a weight that is held as factors.

With orthonormal bases a change of sigma changes W = u @ sigma @ vh by as much in every unitarily invariant norm. How
far an optimizer goes depends on its kind:

- entrywise (Adam): every entry moves by about the learning rate, so sigma (r, r) moves by lr * r in the Frobenius
  norm, a dense weight (rows, cols) by lr * sqrt(rows * cols). The step shrinks with the rank.
- spectral (Muon): the orthogonalised step has the same spectral norm at every rank, up to Muon's own factor for the
  shape.
- linear (momentum SGD) and relative (Adafactor where its step is a share of the weight's size, which the Trainer's is
  not): the step does not depend on the rank, or follows the weight by itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


StepKind = Literal["entrywise", "spectral", "linear", "relative"]
Shape = tuple[int, ...]

RAMP = 100  # steps in which a new scale is reached: the full step right after a cut overshoots

KINDS: dict[str, StepKind] = {  # by the name of an optimizer's class, or of one that it inherits from
    **dict.fromkeys(("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Lion"), "entrywise"),
    "Muon": "spectral",
    "SGD": "linear",
    "Adafactor": "relative",
}


@dataclass(frozen=True)
class StepSize:
    """The scale of a layer's step by which one learning rate serves every rank.

    `lr_scale`: "match" gives sigma's step the size of a dense step by the same optimizer, "none" leaves it as the
    optimizer makes it (the paper's way), a number is a constant scale for all layers once they are factorised.
    """

    lr_scale: str | float = "match"

    def scale(
        self, kind: StepKind, matrix: Shape, core: Shape, *, factored: bool = True, muon_adjustment: str | None = None
    ) -> float:
        """The factor on the step of a core (rows, cols) that stands in for a weight of shape `matrix`.

        Both may have a leading dimension for groups. 1 where the core is the weight itself, not `factored` yet.
        """
        if self.lr_scale == "none" or not factored:
            return 1.0
        if not isinstance(self.lr_scale, str):
            return float(self.lr_scale)
        if kind == "entrywise":
            return math.sqrt(math.prod(matrix[-2:]) / math.prod(core[-2:]))
        if kind == "spectral":
            return _muon_factor(matrix, muon_adjustment) / _muon_factor(core, muon_adjustment)
        return 1.0


def _muon_factor(shape: Shape, adjustment: str | None) -> float:
    """What Muon multiplies its step with for a matrix of this shape (`adjust_lr_fn` of torch.optim.Muon)."""
    rows, cols = shape[-2:]
    return math.sqrt(max(rows, cols)) if adjustment == "match_rms_adamw" else math.sqrt(max(1, rows / cols))


@dataclass
class Ramp:
    """A scale on its way from `start` to `target` over `RAMP` steps, of which `taken` are taken."""

    start: float
    target: float
    taken: int = RAMP

    @property
    def value(self) -> float:
        way = self.taken / RAMP
        return self.target if way >= 1 else self.start + (self.target - self.start) * way

    def aim(self, target: float) -> None:
        """Set out for another target from where it is."""
        if target != self.target:
            self.start, self.target, self.taken = self.value, target, 0

    def advance(self) -> None:
        self.taken = min(RAMP, self.taken + 1)
