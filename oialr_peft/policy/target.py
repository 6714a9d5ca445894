"""The ranks by which the whole model ends at a size that was asked for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..linalg import stored_size
from .ranks import LayerFacts, floor_rank
from .schedule import Approach, share_of


@dataclass(frozen=True)
class TargetSize:
    """The cut of one update, for all layers at once: the compressed model is to end at a `share` of its dense size.

    The size counts values as a compressed checkpoint holds them: two factors of a layer where they are smaller than
    its dense weight, and the `rest` of the model, which no cut changes. `min_rank` and `multiple` as in `RankRule`.
    `approach` says how much of the way to the final ranks an update goes; they are chosen anew each time.

    The final ranks are those at which the layers together lose least for their size. A layer with the norm n loses
    -n log(kept energy / energy): n times the share that goes as long as it is small, and beyond all bounds where
    nothing would be left. Shares alone, or energies alone, ended worse (DIARY: A size to ask for).
    """

    share: float
    rest: int
    approach: Approach
    min_rank: float = 0.0
    multiple: int = 1

    def joint(self, facts: Mapping[str, LayerFacts]) -> bool:
        """As in `RankRule`; once the model has its size nothing more is cut, whatever the spectra."""
        return self.rest + sum(stored_size(fact.shape, fact.rank) for fact in facts.values()) > self.values(facts)

    def choose(
        self, spectra: Mapping[str, torch.Tensor], facts: Mapping[str, LayerFacts], step: int
    ) -> dict[str, int]:
        """The rank to keep of each layer after optimizer step `step`, from what its directions are worth (rank,) or
        (groups, rank): singular values, weighted or of what was seen, which need not descend. Layers in `facts`
        without a spectrum stay as they are, and count."""
        energies = {name: _energies(values) for name, values in spectra.items()}
        known = [float(energy[-1]) ** 0.5 for energy in energies.values() if energy[-1]]
        typical = sum(known) / max(1, len(known)) or 1.0
        options = {name: self._options(energy, facts[name], typical) for name, energy in energies.items()}
        fixed = self.rest + sum(stored_size(fact.shape, fact.rank) for n, fact in facts.items() if n not in options)
        final = _fill(options, self.values(facts) - fixed)
        way = self.approach.way(step)
        ranks = {}
        for name, option in options.items():
            least, present = int(option.ranks[final[name]]), int(option.ranks[-1])
            wanted = present - share_of(present - least, way)
            ranks[name] = min(present, math.ceil(wanted / self.multiple) * self.multiple)
        return ranks

    def values(self, facts: Mapping[str, LayerFacts]) -> int:
        """How many values the model is to hold in the end."""
        return math.floor(self.share * (self.rest + sum(math.prod(fact.shape) for fact in facts.values())))

    def floor(self, facts: Mapping[str, LayerFacts]) -> dict[str, int]:
        """How many values each layer holds at the lowest rank that it may have."""
        return {name: stored_size(fact.shape, self._lowest(fact, fact.rank)) for name, fact in facts.items()}

    def _lowest(self, fact: LayerFacts, present: int) -> int:
        least = floor_rank(fact.full_rank, self.min_rank)
        return min(present, math.ceil(least / self.multiple) * self.multiple)

    def _options(self, energy: torch.Tensor, fact: LayerFacts, typical: float) -> _Options:
        """The ranks that make a layer smaller, and its present one; of zeros no direction is better than another."""
        present, norm = len(energy), float(energy[-1]) ** 0.5
        if not norm:
            energy, norm = torch.arange(1, present + 1, dtype=energy.dtype, device="cpu"), typical
        *groups, rows, cols = fact.shape
        dense, each = math.prod(fact.shape), math.prod(groups) * (rows + cols)
        ranks = torch.arange(self._lowest(fact, present), present, self.multiple, device="cpu")
        ranks = torch.cat([ranks[each * ranks < dense], torch.tensor([present], device="cpu")])
        return _Options(
            ranks, (each * ranks).clamp(max=dense), -norm / typical * (energy[ranks - 1] / energy[-1]).log()
        )


def _energies(values: torch.Tensor) -> torch.Tensor:
    """The energy (squared norm) of the leading 1, 2, ... directions, of several matrices together."""
    return values.detach().to("cpu", torch.float64).square().reshape(-1, values.shape[-1]).sum(0).cumsum(0)


class _Options(NamedTuple):
    """What a layer may become: ranks ascending, the values that it then holds, what it loses."""

    ranks: torch.Tensor
    sizes: torch.Tensor
    losses: torch.Tensor

    def at_price(self, price: float) -> int:
        """The option of least loss plus price for size."""
        return int((self.losses + price * self.sizes).argmin())


def _fill(options: Mapping[str, _Options], budget: int) -> dict[str, int]:
    """The option of each layer, by its place: all that fit into `budget` values, at the least loss.

    One price per value is put on all layers, as low as the budget allows: the best choice there is of its size. What
    is left of the budget then goes, rank by rank, to whichever layer gains most for it.
    """

    def total(chosen: Mapping[str, int]) -> int:
        return sum(int(options[name].sizes[place]) for name, place in chosen.items())

    def at_price(price: float) -> dict[str, int]:
        return {name: option.at_price(price) for name, option in options.items()}

    chosen = {name: len(option.ranks) - 1 for name, option in options.items()}
    if total(chosen) <= budget:
        return chosen
    low, high = -80.0, 20.0  # of the price's logarithm; at the lower end nothing is cut, at the upper one all that may
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if total(at_price(math.exp(middle))) <= budget else (middle, high)
    chosen = at_price(math.exp(high))
    _spend(options, chosen, budget - total(chosen))
    return chosen


def _spend(options: Mapping[str, _Options], chosen: dict[str, int], left: int) -> None:
    """Raise ranks, the most gainful first, as long as a step of any layer fits."""

    def step(name: str) -> tuple[float, int, str] | None:
        _, sizes, losses = options[name]
        if (place := chosen[name]) + 1 == len(sizes):
            return None
        cost = int(sizes[place + 1] - sizes[place])
        return float(losses[place + 1] - losses[place]) / max(cost, 1), cost, name

    steps = [found for name in options if (found := step(name))]
    heapq.heapify(steps)
    while steps:
        _, cost, name = heapq.heappop(steps)
        if cost <= left:
            left -= cost
            chosen[name] += 1
            if (found := step(name)) is not None:
                heapq.heappush(steps, found)
