"""Who computes which SVD. Plain arithmetic on shapes, so every process comes to the same plan."""

from __future__ import annotations

import math
from collections.abc import Sequence


_PIECES_A_ROUND = 4  # per process: enough to balance, few enough to hold


def svd_cost(shape: tuple[int, ...]) -> int:
    """Relative cost of the SVD of a matrix (rows, cols), or of several (groups, rows, cols): rows x cols x min."""
    return math.prod(shape) * min(shape[-2:])


def assign_owners(costs: Sequence[int], processes: int) -> list[int]:
    """The process that does each piece of work: dearest piece first, to the least loaded process.

    The slowest process is then at most 4/3 of the best possible plan (Graham 1969), and close to the mean where there
    are many pieces. Ties go to the earlier piece and the lower process.
    """
    loads, owners = [0] * processes, [0] * len(costs)
    for piece in _dearest_first(costs):
        owner = min(range(processes), key=lambda p: (loads[p], p))
        loads[owner] += costs[piece]
        owners[piece] = owner
    return owners


def rounds(costs: Sequence[int], processes: int) -> list[list[int]]:
    """The pieces of work by round, dearest first; the rotations of one round are held at the same time."""
    order = _dearest_first(costs)
    width = _PIECES_A_ROUND * processes if processes > 1 else 1
    return [order[start : start + width] for start in range(0, len(order), width)]


def _dearest_first(costs: Sequence[int]) -> list[int]:
    return sorted(range(len(costs)), key=lambda i: (-costs[i], i))
