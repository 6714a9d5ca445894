"""What an earlier state, loaded in the middle of a run, would leave behind: moments and step scales of other bases."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..compat.torch_ import writes
from ..errors import tell
from ..moments import MomentCarrier
from ..weights import AdaptedWeight
from .optimizer_steps import around_steps, loads_of
from .step_scale import StepScale


_SAME = 1e-2  # of a sketch, so that a cast to bfloat16 is no other basis


class Restored:
    """Looks, before each step, whether a weight was loaded since the last one, and lets what belongs to its former
    bases start afresh.

    Moments are coordinates in the bases: beside those of another time they point anywhere, and of another rank a
    fused kernel would read past their end. Where the optimizer's state was loaded as well, it is taken as it is,
    if it fits. Before the first step model, optimizer and updater may be restored in any order.

    Args:
        carrier: of the optimizer that trains the weights.
        weights: {name: weight}; those of residual adapters, whose bases stay, are left alone.
        scale: of the optimizer's steps.
    """

    def __init__(self, carrier: MomentCarrier, weights: Mapping[str, AdaptedWeight], scale: StepScale) -> None:
        self._carrier, self._scale = carrier, scale
        self._weights = {name: weight for name, weight in weights.items() if weight.base is None}
        self._seen: dict[str, _Seen] = {}
        self._loads, self._stepped = loads_of(carrier.optimizer), False
        self._drop([])
        self.note()
        around_steps(carrier.optimizer, self, self._replaces, first=True)

    def note(self) -> None:
        """Take the present bases for those of the moments; to be called after an update."""
        for name in self._touched():
            self._seen[name] = _Seen.of(self._weights[name])

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        touched, loads = self._touched(), loads_of(optimizer)
        if not touched and loads == self._loads:
            return
        other = [name for name in touched if not self._seen[name].is_basis_of(self._weights[name])]
        self._drop(other if self._stepped and loads == self._loads else [])
        if other:
            self._scale.restart()
        self.note()
        self._loads = loads

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        self._stepped = True

    def _touched(self) -> list[str]:
        """The weights whose bases were replaced or written to since they were seen."""
        return [name for name, w in self._weights.items() if name not in self._seen or self._seen[name].is_touched(w)]

    def _drop(self, other: list[str]) -> None:
        """Drop the moments of the weights that have `other` bases, and all whose shape does not fit."""
        stale = self._carrier.drop({name: self._weights[name].core for name in other})
        stale += self._carrier.drop_stale({name: weight.core for name, weight in self._weights.items()})
        if stale:
            tell(
                f"The optimizer held moments of another rank or in other bases for {len(stale)} layers, first "
                f"'{stale[0]}': weights were loaded under it, or an update was interrupted. They start afresh. To "
                "keep them, load the optimizer's state of the same time too."
            )

    def _replaces(self, other: object) -> bool:
        return isinstance(other, Restored) and self._scale.replaces(other._scale)


@dataclass
class _Seen:
    """The bases of a weight as they were: themselves, how often they had been written to, and their sketches."""

    bases: list[weakref.ref[torch.Tensor] | None]
    counts: list[int]
    sketches: list[torch.Tensor | None]

    @classmethod
    def of(cls, weight: AdaptedWeight) -> _Seen:
        bases = [None if basis is None else weakref.ref(basis) for basis in weight.bases]
        return cls(bases, _counts(weight.bases), _sketches(weight.bases))

    def is_touched(self, weight: AdaptedWeight) -> bool:
        seen = [None if basis is None else basis() for basis in self.bases]
        replaced = any(old is not new for old, new in zip(seen, weight.bases, strict=True))
        return replaced or _counts(weight.bases) != self.counts

    def is_basis_of(self, weight: AdaptedWeight) -> bool:
        """Whether the weight has bases of these values."""
        return all(_alike(old, new) for old, new in zip(self.sketches, _sketches(weight.bases), strict=True))


def _counts(bases: tuple[torch.Tensor | None, ...]) -> list[int]:
    return [writes(basis) for basis in bases if basis is not None]


def _sketches(bases: tuple[torch.Tensor | None, torch.Tensor | None]) -> list[torch.Tensor | None]:
    """One number for each direction of a basis: its product with a ramp."""
    left, right = bases
    columns = left, None if right is None else right.mT
    return [None if c is None else torch.linspace(1, 2, c.shape[-2], device=c.device).to(c.dtype) @ c for c in columns]


def _alike(old: torch.Tensor | None, new: torch.Tensor | None) -> bool:
    if old is None or new is None or old.shape != new.shape:
        return old is new
    return bool((old.float() - new.to(old.device).float()).abs().max() <= _SAME * old.float().abs().max().clamp_min(1))
