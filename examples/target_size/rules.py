"""Rank rules to compare `target_size` with: the same size and the same way there, other ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from oialr_peft.linalg import stored_size
from oialr_peft.policy import LayerFacts, TargetSize


class PerLayer(TargetSize):
    """Each layer for itself: the ranks that one number gives, which is found so that the model has the size."""

    def ranks_at(
        self, number: float, spectra: Mapping[str, torch.Tensor], facts: Mapping[str, LayerFacts]
    ) -> dict[str, int]:
        raise NotImplementedError

    def choose(
        self, spectra: Mapping[str, torch.Tensor], facts: Mapping[str, LayerFacts], step: int
    ) -> dict[str, int]:
        def size(ranks: dict[str, int]) -> int:
            return self.rest + sum(stored_size(facts[name].shape, rank) for name, rank in ranks.items())

        present = {name: fact.rank for name, fact in facts.items()}
        if size(present) <= self.values(facts):
            return present
        final = _largest(lambda number: self.ranks_at(number, spectra, facts), lambda r: size(r) <= self.values(facts))
        way = self.approach.way(step)
        return {name: rank - int(way * (rank - final[name]) + 1e-9) for name, rank in present.items()}


class Cutoff(PerLayer):
    """The paper's: values above a share of the layer's largest stay."""

    def ranks_at(self, number, spectra, facts):
        return {name: max(1, int((values >= (1 - number) * values[0]).sum())) for name, values in spectra.items()}


class Uniform(PerLayer):
    """The same share of the full rank in all layers."""

    def ranks_at(self, number, spectra, facts):
        return {name: min(fact.rank, max(1, round(number * fact.full_rank))) for name, fact in facts.items()}


def _largest(ranks_at: Callable[[float], dict[str, int]], fits: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """The ranks at the largest number in [0, 1] by which they fit."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(ranks_at(middle)) else (low, middle)
    return ranks_at(low)
