"""How many singular values a layer keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from .schedule import share_of


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

    `max_cut`: at most this share of the present rank goes at once. `min_rank`: floor as a share of the full rank
    min(rows, cols), never under 1. `multiple`: ranks are rounded up to a multiple of this number; above 1, one
    multiple may go whatever `max_cut` says (but 0), or a small share of a small rank would never reach the next one.

    `kind`: below what a singular value is dropped.

    - "relative": below the share `sigma_cutoff` (β) of the largest (the paper).
    - "energy": below the share `sigma_cutoff` of the root mean square of all, dropped ones counted as zero. One
      outlier among a thousand values lifts that a thirtieth as far as it lifts the largest.
    - "optimal": below the optimal hard threshold for a low-rank matrix in noise of unknown size (Gavish and Donoho
      2014), a multiple of the median, which no outlier moves. What it takes for noise goes at once, whatever `max_cut`
      says, and later updates cut nothing: the median of what was kept says nothing about noise.

    None cuts again what it has kept, as long as the spectrum stays as it is.
    """

    sigma_cutoff: float
    max_cut: float
    min_rank: float
    multiple: int = 1
    kind: Literal["relative", "energy", "optimal"] = "relative"

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
        return {name: select_rank(values, facts[name], self) for name, values in spectra.items()}

    def threshold(self, values: torch.Tensor, fact: LayerFacts) -> torch.Tensor:
        """Below what a value of each spectrum is dropped, (1,) or (groups, 1)."""
        if self.kind == "relative":
            return self.sigma_cutoff * values[..., :1]
        if self.kind == "energy":
            return self.sigma_cutoff * (values.square().sum(-1, keepdim=True) / fact.full_rank).sqrt()
        if values.shape[-1] < fact.full_rank:
            return torch.zeros_like(values[..., :1])
        aspect = fact.full_rank / max(fact.shape[-2:])
        omega = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43  # equation 5 there
        return omega * values.quantile(0.5, dim=-1, keepdim=True)


def select_rank(singular_values: torch.Tensor, fact: LayerFacts, rule: RankRule) -> int:
    """The rank to keep, between 1 and the present rank.

    `singular_values` (rank,) is the descending spectrum of a layer. A value equal to the threshold is kept, so ties
    are decided the same everywhere. Of several spectra (groups, rank), which share one rank, the one that wants most
    decides.
    """
    present = singular_values.shape[-1]
    wanted = int((singular_values >= rule.threshold(singular_values, fact)).sum(-1).max())
    max_cut = 1.0 if rule.kind == "optimal" else rule.max_cut
    step = rule.multiple if rule.multiple > 1 and max_cut else 0
    capped = present - max(step, share_of(present, max_cut))
    least = max(wanted, capped, floor_rank(fact.full_rank, rule.min_rank))
    return min(present, math.ceil(least / rule.multiple) * rule.multiple)


def floor_rank(full_rank: int, min_rank: float) -> int:
    """The rank that no cut goes below."""
    return max(1, share_of(full_rank, min_rank))
