"""What one update would cost on so many processes, by the rounds and windows that it really goes in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..workers.plan import SvdTask, assign_owners, rounds, windows


BYTES = 4  # of a float32 value: weights, factors, gradients, moments and what an update sends
SVD_FLOPS = 22  # per rows x cols x min: Golub-Reinsch with both bases, square (Golub and Van Loan, section 8.6)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class UpdatePlan:
    """One update. `svd_flops`: work of each process; `imbalance`: the slowest over the mean of all processes;
    `seconds`: until the slowest is done, round by round; `bytes_sent`: all that is broadcast, once; `bytes_held`: what
    a process holds beside the model at the same time, at most: its own results until they are sent, and those that
    arrive until they are applied; `largest_message`: the longest that anyone waits in a collective is for these bytes,
    since all SVDs of a round are done before."""

    svd_flops: list[int]
    imbalance: float
    seconds: float
    bytes_sent: int
    bytes_held: int
    largest_message: int


def plan_update(
    shapes: Sequence[Shape], ranks: Sequence[int], processes: int, svd_gflops: float, *, dense: bool = False
) -> UpdatePlan:
    """The cost of decomposing matrices of `shapes`, (rows, cols) or (groups, rows, cols), and of sending `ranks`.

    `dense`: they are weights that are factorised, else sigmas. The seconds are the work over `svd_gflops`; nobody
    starts a round before the slowest has ended the last one. Sent are, per matrix, the bases (rows, rank) and
    (cols, rank) and the singular values; the ranks are words at the store, some 100 bytes per matrix, and not counted.
    """
    tasks = [SvdTask(str(i), shape, min(shape[-2:]), dense=dense) for i, shape in enumerate(shapes)]
    owners = assign_owners([task.cost for task in tasks], processes)
    loads, waited, held = [0] * processes, 0, 0
    for chosen in rounds(tasks, owners):
        own = [0] * processes
        for i in chosen:
            own[owners[i]] += SVD_FLOPS * tasks[i].cost
        loads = [load + more for load, more in zip(loads, own, strict=True)]
        waited += max(own)
        held = max(held, _held(tasks, ranks, owners, chosen, processes))
    return UpdatePlan(
        svd_flops=loads,
        imbalance=max(loads) * processes / sum(loads),
        seconds=waited / (svd_gflops * 1e9),
        bytes_sent=sum(task.bytes(r) for task, r in zip(tasks, ranks, strict=True)) if processes > 1 else 0,
        bytes_held=held,
        largest_message=max(
            BYTES * math.prod(shape) for task, r in zip(tasks, ranks, strict=True) for shape in task.shapes(r)
        )
        if processes > 1
        else 0,
    )


def _held(
    tasks: Sequence[SvdTask], ranks: Sequence[int], owners: Sequence[int], chosen: Sequence[int], processes: int
) -> int:
    """What the fullest process holds in a round: its own results, and the others' of one window."""
    if processes == 1:
        return max(tasks[i].bytes(ranks[i]) for i in chosen)
    own = Counter()
    for i in chosen:
        own[owners[i]] += tasks[i].own_bytes(ranks[i])
    held = 0
    for window in windows([tasks[i].bytes(ranks[i]) for i in chosen]):
        sent = Counter()
        for i in (chosen[place] for place in window):
            sent[owners[i]] += tasks[i].bytes(ranks[i])
        held = max(held, max(own[p] + sent.total() - sent[p] for p in range(processes)))
    return held
