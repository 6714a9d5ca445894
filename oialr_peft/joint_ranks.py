"""Choose, of an update: the ranks of all layers together, from what each is worth to the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .linalg import Seen, decompose, seen_spectrum, spectrum
from .moments import MomentCarrier
from .policy import Policies
from .policy.ranks import LayerFacts
from .weights import AdaptedWeight
from .workers.exchange import Solution
from .workers.plan import SvdTask


SEEN = "seen"


class JointRanks:
    """The first pass of an update whose policy must know every layer: the spectra of all of them, then their ranks.

    A spectrum is of what the loss felt of the layer in the last step, by which the cut that follows goes too; where
    nothing was felt of any layer, of its singular values, weighted by the optimizer's mean squared gradients if it has
    those of all layers. Only spectra of one kind can be compared: where some layers were felt, the others count as
    typical ones, with the directions that their singular values give.

    Attributes:
        wanted: whether this update's policy must know every layer.
    """

    def __init__(
        self,
        weights: Mapping[str, AdaptedWeight],
        facts: Mapping[str, LayerFacts],
        policies: Policies,
        carrier: MomentCarrier,
        seen: Mapping[str, Seen],
        step: int,
    ) -> None:
        self.rule, self.facts, self.seen, self.step = policies.ranks, facts, seen, step
        self.wanted = self.rule.joint(facts)
        self.squares = _squared_gradients(weights, carrier) if self.wanted else {}
        self.spectra: dict[str, torch.Tensor] = {}
        self.felt: set[str] = set()

    def find(self, task: SvdTask, matrix: torch.Tensor) -> Solution | None:
        """The spectrum of a layer, and of which kind it is."""
        seen = self.seen.get(task.name)
        if seen is not None and (values := seen_spectrum(matrix, seen)) is not None:
            return Solution([values[..., : task.rank]], SEEN)
        if not self.squares:
            values = spectrum(matrix, task.rank, task.method)
        else:
            rotation = decompose(matrix, task.rank, task.method)
            squares = self.squares[task.name].reshape(matrix.shape)
            values = None if rotation is None else rotation.sensitivities(squares)
        return None if values is None else Solution([values])

    def take(self, task: SvdTask, solution: Solution | None) -> None:
        if solution is not None:
            (self.spectra[task.name],) = solution.tensors
            self.felt |= {task.name} if solution.words == SEEN else set()

    def choose(self) -> dict[str, int]:
        """The ranks of all layers, from all spectra."""
        return self.rule.choose(self._comparable(), self.facts, self.step)

    def _comparable(self) -> dict[str, torch.Tensor]:
        """The spectra, with those that were not seen as large as the mean of the others."""
        if not self.felt:
            return self.spectra
        typical = sum(float(self.spectra[name].norm()) for name in self.felt) / len(self.felt)
        unseen = {name: values for name, values in self.spectra.items() if name not in self.felt}
        return self.spectra | {name: values * (typical / (values.norm() or 1)) for name, values in unseen.items()}


def _squared_gradients(weights: Mapping[str, AdaptedWeight], carrier: MomentCarrier) -> dict[str, torch.Tensor]:
    """Of every layer, or of none."""
    found = {name: carrier.squared_gradient(weight.core) for name, weight in weights.items()}
    known = {name: squares for name, squares in found.items() if squares is not None}
    return known if len(known) == len(found) else {}
