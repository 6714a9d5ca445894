"""How many singular values a layer keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LayerFacts:
    """What a rank policy may know of a layer beside its spectrum: the `shape` of its matrix, its present `rank`, and
    the `full_rank` min(rows, cols)."""

    shape: tuple[int, ...]
    rank: int
    full_rank: int


@dataclass(frozen=True)
class RankRule:
    """The cut of one update (paper, algorithm 2; caps as in the authors' code).

    `sigma_cutoff` (β): drop singular values below this share of the largest. `max_cut`: at most this share of the
    present rank goes at once. `min_rank`: floor as a share of the full rank min(rows, cols), never under 1.
    `multiple`: ranks are rounded up to a multiple of this number; above 1, one multiple may go whatever `max_cut` says
    (but 0), or a small share of a small rank would never reach the next one.
    """

    sigma_cutoff: float
    max_cut: float
    min_rank: float
    multiple: int = 1

    def joint(self, facts: Mapping[str, LayerFacts]) -> bool:
        """Whether `choose` must see the spectra of all layers of an update at once; else it is asked one by one."""
        return False

    def choose(
        self, spectra: Mapping[str, torch.Tensor], facts: Mapping[str, LayerFacts], step: int
    ) -> dict[str, int]:
        """The rank to keep of each layer, from its descending singular values (rank,) or (groups, rank).

        `facts` may name more layers than are due, and `step` is the optimizer step of the update; policies of another
        kind use them.
        """
        return {name: select_rank(values, facts[name].full_rank, self) for name, values in spectra.items()}


def select_rank(singular_values: torch.Tensor, full_rank: int, rule: RankRule) -> int:
    """The rank to keep, between 1 and the present rank.

    `singular_values` (rank,) is the descending spectrum of a layer whose full rank is `full_rank` = min(rows, cols). A
    value equal to the threshold is kept, so ties are decided the same everywhere. Of several spectra (groups, rank),
    which share one rank, the one that wants most decides.
    """
    present = singular_values.shape[-1]
    wanted = int((singular_values >= rule.sigma_cutoff * singular_values[..., :1]).sum(-1).max())
    # The small constant keeps shares such as 0.29 * 100 = 28.999999999999996 from losing one to rounding.
    step = rule.multiple if rule.multiple > 1 and rule.max_cut else 0
    capped = present - max(step, math.floor(rule.max_cut * present + 1e-9))
    least = max(wanted, capped, floor_rank(full_rank, rule.min_rank))
    return min(present, math.ceil(least / rule.multiple) * rule.multiple)


def floor_rank(full_rank: int, min_rank: float) -> int:
    """The rank that no cut goes below."""
    return max(1, math.floor(min_rank * full_rank + 1e-9))
