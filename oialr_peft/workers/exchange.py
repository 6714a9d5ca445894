"""Tasks solved on one process each and their solutions used on all, while neither waits for the other where it can."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .group import Workers
from .plan import WINDOW_BYTES, SvdTask, assign_owners, rounds, windows


PACKED_BYTES = 2**20  # tensors of one process below this size are sent as one


@dataclass
class Solution:
    """What was found for a task: `tensors`, and plain data about them."""

    tensors: list[torch.Tensor]
    words: Any = None


class _Sending(NamedTuple):
    task: SvdTask
    owner: int
    forms: list[tuple[str, list[int]]]  # dtype and shape of every tensor
    solution: Solution

    @property
    def bytes(self) -> int:
        return sum(getattr(torch, dtype).itemsize * math.prod(shape) for dtype, shape in self.forms)

    def make_room(self) -> None:
        device = self.task.device
        self.solution.tensors = [torch.empty(s, dtype=getattr(torch, d), device=device) for d, s in self.forms]


class Exchange:
    """One pass over tasks. Several processes: in rounds, see `plan`; one process: one task after the other.

    In a round an owner solves its tasks and says at the store "ready" or "failed, why". Once all have said so, the
    solutions are broadcast; those of the last window arrive while the next round is being solved. So nobody waits in a
    collective for another's SVD, whatever that takes.

    Args:
        solve: the solution of a task from its matrix, called on its owner; None where there is none.
        use: takes a task's solution, on its owner at once, on the others when it has arrived. It may put other tensors
            of the same values into the solution, which then are sent.
        matrix: what `solve` gets of a task.
        sharded: whether `matrix` and `use` are collective calls, as under FSDP2. Then all processes call them in one
            order, and `matrix` for all tasks of a round before any is solved.
    """

    def __init__(
        self,
        workers: Workers,
        matrix: Callable[[SvdTask], Any],
        solve: Callable[[SvdTask, Any], Solution | None],
        use: Callable[[SvdTask, Solution | None], None],
        sharded: bool = False,
    ) -> None:
        self.workers = workers
        self.matrix, self.solve, self.use = matrix, solve, use
        self._in_order = sharded and workers.size > 1
        self._number = workers.count()
        self._error: Exception | None = None
        self._what = ""  # failed with `_error`
        self._flight: list[tuple[_Sending, list[Any]]] = []
        self._packs: list[tuple[torch.Tensor, Any, list[tuple[_Sending, int]]]] = []

    def run(self, tasks: Sequence[SvdTask]) -> None:
        """Solve all tasks and use all solutions.

        Raises:
            RuntimeError: on all processes, when solving or using failed on one of them; it names the layer.
        """
        owners = assign_owners([task.cost for task in tasks], self.workers.size, self.workers.nodes)
        said = []
        for number, chosen in enumerate(rounds(tasks, owners)):
            work = [(tasks[i], owners[i]) for i in chosen]
            found = self._solve_own(work)
            self._land()
            if self.workers.size > 1:
                key = f"{self._number}-{number}"
                said += self._say(key, work, found)
                self._send(self._hear(key, work, found))
            elif self._error is not None:
                raise self._error
        self._land()
        self.workers.meet(None if self._error is None else self._failed())
        self.workers.forget(said)

    def _solve_own(self, work: list[tuple[SvdTask, int]]) -> dict[str, Solution | None]:
        """This process's solutions of a round, used here at once if may be."""
        own = [task for task, owner in work if owner == self.workers.index]
        if sum(task.bytes(task.rank) for task in own) + sum(it.bytes for it, _ in self._flight) > WINDOW_BYTES:
            self._land()
        found: dict[str, Solution | None] = {}
        gathered = self._gather(work)
        for task in own:
            self._attempt(
                "The SVD of", task, functools.partial(self._solve, task, gathered.pop(task.name, None), found)
            )
            if not self._in_order:
                self._attempt("Updating", task, lambda task=task: self.use(task, found[task.name]))
        return found

    def _gather(self, work: list[tuple[SvdTask, int]]) -> dict[str, Any]:
        gathered = {}
        for task, owner in work if self._in_order else ():
            matrix = self.matrix(task)
            if owner == self.workers.index:
                gathered[task.name] = matrix
        return gathered

    def _solve(self, task: SvdTask, matrix: Any, found: dict[str, Solution | None]) -> None:
        found[task.name] = solution = self.solve(task, self.matrix(task) if matrix is None else matrix)
        if solution is not None and self.workers.size > 1:  # all are to multiply by tensors of one layout
            solution.tensors = [tensor.contiguous() for tensor in solution.tensors]

    def _attempt(self, what: str, task: SvdTask, action: Callable[[], None]) -> None:
        """Do it unless something failed before. A failure is kept: the others must hear of it before this stops."""
        if self._error is None:
            try:
                action()
            except Exception as error:
                self._error, self._what = error, f"{what} '{task.name}'"

    def _use_later(self, task: SvdTask, owner: int, solution: Solution | None) -> None:
        if self._in_order or owner != self.workers.index:
            self._attempt("Updating", task, lambda: self.use(task, solution))
        if self._in_order and self._error is not None:
            raise self._failed()  # at once: the others wait in a collective, where no word reaches them

    def _failed(self) -> Exception:
        where = f"{self._what} failed on process {self.workers.index}"
        failure = RuntimeError(f"{where}: {type(self._error).__name__}: {self._error}")
        failure.__cause__ = self._error
        return failure

    # -- words -------------------------------------------------------------------------------------------------

    def _say(self, key: str, work: list[tuple[SvdTask, int]], found: dict[str, Solution | None]) -> list[str]:
        own = [task.name for task, owner in work if owner == self.workers.index]
        if not own:
            return []
        key = f"{key}-{self.workers.index}"
        if self._error is not None:
            self.workers.say(key, {"failed": str(self._failed())})
        else:
            self.workers.say(key, {"found": [_describe(found[name]) for name in own]})
        return [key]

    def _hear(self, key: str, work: list[tuple[SvdTask, int]], found: dict[str, Solution | None]) -> list[_Sending]:
        """The solutions that a round has, with empty tensors where they are still to come."""
        heard, failed = {}, []
        for owner in sorted({owner for _, owner in work}):
            tasks = [task for task, its in work if its == owner]
            awaited = f"process {owner} and its SVD of {', '.join(f'{task.name!r} {task.shape}' for task in tasks)}"
            words = self.workers.hear(f"{key}-{owner}", awaited)
            failed += [words["failed"]] if "failed" in words else []
            heard.update(zip([task.name for task in tasks], words.get("found", ()), strict=False))
        if failed:
            raise RuntimeError(f"OIALR stops on all processes. {failed[0]}") if self._error is None else self._failed()
        coming = []
        for task, owner in work:
            if heard[task.name] is None:
                self._use_later(task, owner, None)
            else:
                forms, words = heard[task.name]
                coming.append(_Sending(task, owner, forms, found.get(task.name) or Solution([], words)))
        return coming

    # -- tensors -----------------------------------------------------------------------------------------------

    def _send(self, coming: list[_Sending]) -> None:
        """Window by window; the last one is left under way."""
        for window in windows([sending.bytes for sending in coming]):
            self._land()
            self._start([coming[i] for i in window])

    def _start(self, window: list[_Sending]) -> None:
        packs = defaultdict(list)
        for sending in window:
            if not self._owns(sending):
                sending.make_room()
            handles = []
            for place, tensor in enumerate(sending.solution.tensors):
                if tensor.nbytes < PACKED_BYTES:
                    packs[sending.owner, tensor.dtype, tensor.device].append((sending, place))
                else:
                    handles.append(self._broadcast(tensor, sending.owner))
            self._flight.append((sending, handles))
        for (owner, *_), entries in packs.items():
            tensors = [sending.solution.tensors[place] for sending, place in entries]
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            self._packs.append((flat, self._broadcast(flat, owner), entries))

    def _broadcast(self, tensor: torch.Tensor, owner: int) -> Any:
        return dist.broadcast(tensor, group=self.workers.group, group_src=owner, async_op=True)

    def _land(self) -> None:
        """Use what is under way as it arrives."""
        for flat, handle, entries in self._packs:
            handle.wait()
            tensors = [sending.solution.tensors[place] for sending, place in entries]
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))  # not a view of `flat`: its alignment decides which kernel runs
        self._packs.clear()
        while self._flight:
            sending, handles = self._flight.pop(0)
            for handle in handles:
                handle.wait()
            self._use_later(sending.task, sending.owner, sending.solution)

    def _owns(self, sending: _Sending) -> bool:
        return sending.owner == self.workers.index


def _describe(solution: Solution | None) -> Any:
    if solution is None:
        return None
    return [[(str(t.dtype).removeprefix("torch."), list(t.shape)) for t in solution.tensors], solution.words]
