"""A weight that takes other bases: the same for its core, for moments, and for whatever lives in its coordinates."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .factors import Factors


class Transport(NamedTuple):
    """P -> `left`ᵀ @ P @ `right`: where a core, its gradient and its moments go; None is the identity."""

    left: torch.Tensor | None
    right: torch.Tensor | None

    def __call__(self, core: torch.Tensor) -> torch.Tensor:
        moved = core if self.left is None else self.left.mT @ core
        return moved if self.right is None else moved @ self.right

    def squared(self) -> Transport:
        """Where averages of squares go, if entries vary independently."""
        return Transport(*(None if basis is None else basis.square() for basis in self))


class BasisChange(NamedTuple):
    """A weight in other bases: its `factors` afterwards, and the `transport` that took its core there.

    Any change of form is one: from dense to factored, a rotation, a cut, or to one basis that moves along with the
    core.
    """

    factors: Factors
    transport: Transport
