"""`delay="auto"` in a run: how the basis of each dense layer turned so far, and which layers stay dense for now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..linalg import decompose, sketch, sketched_stability
from ..policy import Settling
from ..weights import AdaptedWeight
from ..workers.exchange import Exchange, Solution
from ..workers.group import Workers
from ..workers.plan import SvdTask


class Waiting:
    """The layers that are dense until their bases have settled.

    Of each it keeps a sketch of its basis at the last measure, as hexadecimal float32, and its stabilities so far:
    plain data, the same on all processes, so it is in checkpoints whole and decides alike everywhere.

    Args:
        weights: of all layers, by name.
        policy: the test; `None` where the delay is a number, and no layer waits for its basis.
    """

    def __init__(self, weights: Mapping[str, AdaptedWeight], policy: Settling | None) -> None:
        self.policy = policy
        self._weights = weights
        self._sketches: dict[str, str] = {}
        self._stabilities: dict[str, list[float]] = {}

    def measure(self, workers: Workers, step: int, taken: int = 1) -> dict[str, float | None]:
        """Measure where it is time to, and tell {layer that stays dense after this step: its last stability}."""
        if self.policy is None:
            return {}
        dense = {name: weight for name, weight in self._weights.items() if not weight.is_factored}
        if self.policy.is_measured(step, taken):
            tasks = [
                SvdTask(name, w.matrix_shape, w.full_rank, w.core.dtype, w.core.device, cut=False, dense=True)
                for name, w in dense.items()
            ]
            Exchange(workers, lambda task: dense[task.name].matrix, self._sketch, self._take).run(tasks)
        found = {name: self._stabilities.get(name, []) for name in dense}
        return {name: (it or [None])[-1] for name, it in found.items() if self.policy.waits(it, step)}

    def _sketch(self, task: SvdTask, matrix: torch.Tensor) -> Solution | None:
        rotation = decompose(matrix, task.rank, task.method)
        return None if rotation is None else Solution([], sketch(rotation).numpy().tobytes().hex())

    def _take(self, task: SvdTask, solution: Solution | None) -> None:
        if solution is None:
            return
        if (before := self._sketches.get(task.name)) is not None:
            rank = math.prod(task.shape[:-2]) * task.rank
            found = sketched_stability(_numbers(before), _numbers(solution.words), rank)
            self._stabilities.setdefault(task.name, []).append(found)
        self._sketches[task.name] = solution.words

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Plain JSON, of the layers that are dense."""
        return {
            name: {"sketch": found, "stabilities": list(self._stabilities.get(name, []))}
            for name, found in self._sketches.items()
            if not self._weights[name].is_factored
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from `state_dict()`."""
        self._sketches = {name: entry["sketch"] for name, entry in state.items()}
        self._stabilities = {name: list(entry["stabilities"]) for name, entry in state.items()}


def _numbers(words: str) -> torch.Tensor:
    return torch.frombuffer(bytearray.fromhex(words), dtype=torch.float32)
