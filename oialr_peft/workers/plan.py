"""Who computes which SVD, and what is sent when. Plain arithmetic on shapes, so every process comes to the same plan.

An update goes in rounds. In a round every process decomposes a few of its own matrices; once all are ready they are
sent, window by window, and a window is applied before the next one starts. What a process holds beside the model is so
limited to its own results of a round, not yet sent, and one window of the others'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..linalg import working_dtype


OWN_BYTES = 2**28  # of its own results that a process holds until they are sent, or one result
WINDOW_BYTES = 10**9  # of results on their way at the same time, or one result
_OWN_A_ROUND = 4  # as dear as the dearest of a round: enough to balance it, few enough that sending begins early
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SvdTask:
    """One matrix (rows, cols), or several (groups, rows, cols), of a layer that is to be decomposed.

    `rank`: how many singular triplets are wanted, before any cut. `method`: how, as `OIALRConfig.init` has it. `cut`:
    whether the layer's rank is chosen anew. `dense`: whether it is a dense weight, else it is a sigma.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    dtype: torch.dtype = torch.float32
    device: torch.device = _CPU
    method: str = "svd"
    cut: bool = True
    dense: bool = False

    @property
    def cost(self) -> int:
        return svd_cost(self.shape)

    def shapes(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """Of the bases (rows, rank) and (cols, rank) and the singular values, which are what is sent."""
        *groups, rows, cols = self.shape
        return (*groups, rows, rank), (*groups, rank), (*groups, cols, rank)

    def bytes(self, rank: int) -> int:
        """Of what is sent."""
        return working_dtype(self.dtype).itemsize * sum(map(math.prod, self.shapes(rank)))

    @property
    def travels_as_factors(self) -> bool:
        """Whether the right basis is sent transposed, as vh, which the layer holds by then.

        So for large weights, whose bases nobody should hold twice; small ones keep the bits of earlier versions.
        """
        return self.dense and self.bytes(self.rank) > OWN_BYTES

    def own_bytes(self, rank: int) -> int:
        """Of what its owner holds until it is sent, beside the layer's u and vh."""
        left, values, right = (working_dtype(self.dtype).itemsize * math.prod(shape) for shape in self.shapes(rank))
        return values + (0 if self.dense else left) + (0 if self.travels_as_factors else right)


def svd_cost(shape: tuple[int, ...]) -> int:
    """Relative cost of the SVD of a matrix (rows, cols), or of several (groups, rows, cols): rows x cols x min."""
    return math.prod(shape) * min(shape[-2:])


def assign_owners(costs: Sequence[int], processes: int, nodes: Sequence[object] = ()) -> list[int]:
    """The process that does each piece of work: dearest piece first, to the least loaded process.

    The slowest process is then at most 4/3 of the best possible plan (Graham 1969), and close to the mean where there
    are many pieces. Ties go to the earlier piece, and to the process whose node has least to send. `nodes` says on
    which node each process is; by default each has its own.
    """
    first_on_node: Counter[object] = Counter()
    seat = [0] * processes  # its number on its node: the first of every node come before the second of any
    for process, node in enumerate(nodes):
        seat[process], first_on_node[node] = first_on_node[node], first_on_node[node] + 1
    loads, owners = [0] * processes, [0] * len(costs)
    for piece in _dearest_first(costs):
        owner = min(range(processes), key=lambda p: (loads[p], seat[p], p))
        loads[owner] += costs[piece]
        owners[piece] = owner
    return owners


def rounds(tasks: Sequence[SvdTask], owners: Sequence[int]) -> list[list[int]]:
    """The tasks of each round by their place in `tasks`, dearest first. Every owner puts its next few into a round."""
    at, work, held = Counter(), Counter(), Counter()
    found: list[list[int]] = []
    for i in _dearest_first([task.cost for task in tasks]):
        owner, size, cost = owners[i], tasks[i].own_bytes(tasks[i].rank), tasks[i].cost
        budget = _OWN_A_ROUND * tasks[found[at[owner]][0]].cost if at[owner] < len(found) else cost
        if work[owner] and (work[owner] + cost > budget or held[owner] + size > OWN_BYTES):
            at[owner], work[owner], held[owner] = at[owner] + 1, 0, 0
        work[owner], held[owner] = work[owner] + cost, held[owner] + size
        found += [[] for _ in range(at[owner] + 1 - len(found))]
        found[at[owner]].append(i)
    return found


def windows(sizes: Sequence[int]) -> list[list[int]]:
    """Places in `sizes`, in order, in groups whose sum is at most WINDOW_BYTES, or of one."""
    found: list[list[int]] = []
    total = 0
    for i, size in enumerate(sizes):
        if not found or total + size > WINDOW_BYTES:
            found.append([])
            total = 0
        found[-1].append(i)
        total += size
    return found


def _dearest_first(costs: Sequence[int]) -> list[int]:
    return sorted(range(len(costs)), key=lambda i: (-costs[i], i))
