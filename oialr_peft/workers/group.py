"""The processes that train one model together, and what they tell each other in words."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # pyright: ignore[reportPrivateImportUsage]

from ..errors import tell
from .processor import fingerprint, host


PATIENCE = timedelta(hours=12)  # at the store; nobody waits for an SVD inside a collective
FIRST_WORD = timedelta(minutes=10)  # then a warning says who is awaited

_counts: defaultdict[str, itertools.count] = defaultdict(itertools.count)  # of Workers, by group


class Workers:
    """The processes of one group, or this one alone.

    Words, such as "this task is ready" or why it failed, go through the group's store. A process that waits there
    holds up no collective, so no watchdog counts the time. Tensors are broadcast once all are ready.

    Args:
        group: the wrapper's own process group, for instance `DistributedDataParallel.process_group`. `None` (default)
            is this process alone.
        purpose: the processes of a group make their Workers of one purpose in the same order.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, purpose: str = "update") -> None:
        self.group = group
        self.index = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self._store = None if group is None else _store(group, purpose)
        self._met = self._counted = 0
        self.nodes: list[str] = []
        self.alike = True

    def count(self) -> int:
        """The next number for keys; the same on all processes that count alike."""
        self._counted += 1
        return self._counted

    def meet(self, error: Exception | None = None, patience: timedelta | None = None) -> bool:
        """Wait until all processes are here. One that comes with an `error` lets all know instead.

        With `patience` the wait ends after that time, since some may never come. Returns whether all have come.

        Raises:
            RuntimeError: on the other processes; `error` itself on the process that has it.
        """
        if self._store is not None:
            key, counted, self._met = f"met-{self._met}", f"here-{self._met}", self._met + 1
            if error is not None:
                self._store.set(key, f"process {self.index} reports {_in_words(error)}")
            elif self._store.add(counted, 1) == self.size:
                self._store.set(key, "")
                self._store.delete_key(f"met-{self._met - 2}")  # all have left the last meeting: they are here
                self._store.delete_key(f"here-{self._met - 2}")
            if error is None and (why := self._wait(key, "all processes", patience)):
                raise RuntimeError(f"OIALR stops on all processes: {why}")
            if error is None and why is None:
                return False
        if error is not None:
            raise error
        return True

    def say(self, key: str, words: Any) -> None:
        """Make plain data known to all processes under a `key` that is used once."""
        if self._store is not None:
            self._store.set(key, json.dumps(words))

    def hear(self, key: str, what: str) -> Any:
        """What was said under `key`; waits for it. `what` names for the user what is awaited."""
        return json.loads(self._wait(key, what) or "null")

    def forget(self, keys: Sequence[str]) -> None:
        """Delete what this process said, once all have heard it."""
        if self._store is not None:
            for key in keys:
                self._store.delete_key(key)

    def require_equal(self, facts: dict[str, Any], error: Exception | None = None) -> None:
        """Raise on all processes where one of them has an `error` or other `facts` than process 0.

        One hash per process is compared, in two small reductions; the facts are sent only where they differ.

        Raises:
            RuntimeError, or `error` itself on the process that has it.
        """
        self.meet(error)
        if self.all_equal(facts):
            return
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, facts, group=self.group)
        for process, other in enumerate(everyone):
            for name in {**everyone[0], **other}:
                if (one := everyone[0].get(name)) != (two := other.get(name)):
                    raise RuntimeError(
                        f"OIALR stops: {name} must be the same on all processes, but process 0 has {_short(one)} and "
                        f"process {process} has {_short(two)}."
                    )

    def all_equal(self, facts: Any) -> bool:
        """Whether all processes have the same `facts` (plain data): the largest hash of any is also the smallest."""
        if self.group is None:
            return True
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).digest()
        mine = torch.tensor([int.from_bytes(digest[:7], "big")], device=collective_device(self.group))
        least, most = mine.clone(), mine.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=self.group)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        return bool(least == most)

    def decide(self, choose: Callable[[], Any], what: str) -> Any:
        """What process 0 chooses, on all processes; plain data.

        Raises:
            RuntimeError: on the others, where choosing failed; on process 0 what it raised.
        """
        key, error = f"choice-{self.count()}", None
        if self.index == 0:
            try:
                chosen = choose()
            except Exception as failure:
                error, chosen = failure, None
            self.say(key, {"chosen": chosen, "failed": None if error is None else _in_words(error)})
            if error is not None:
                raise error
            return chosen
        words = self.hear(key, f"process 0 and {what}")
        if words["failed"] is not None:
            raise RuntimeError(f"OIALR stops on all processes: {what} failed on process 0: {words['failed']}")
        return words["chosen"]

    def introduce(self) -> None:
        """Learn on which machine every process runs, and whether all compute the same bits from the same bytes."""
        everyone: list[Any] = [None] * self.size
        if self.group is not None:
            dist.all_gather_object(everyone, (host(), fingerprint()), group=self.group)
            self.nodes = [node for node, _ in everyone]
            self.alike = all(other == everyone[0][1] for _, other in everyone)

    def _wait(self, key: str, what: str, patience: timedelta | None = None) -> str | None:
        """What stands under `key`; None where `patience` ended first."""
        assert self._store is not None
        began = time.monotonic()
        try:
            self._store.wait([key], patience or FIRST_WORD)
        except dist.DistStoreError:
            if patience is not None:
                return None
            tell(f"OIALR: process {self.index} has waited for {what} for {FIRST_WORD}; it goes on waiting.")
            try:
                self._store.wait([key], PATIENCE)
            except dist.DistStoreError as error:
                hours = (time.monotonic() - began) / 3600
                raise RuntimeError(
                    f"OIALR stops: process {self.index} has waited for {what} for {hours:.1f} hours."
                ) from error
        return self._store.get(key).decode()


def collective_device(group: dist.ProcessGroup) -> torch.device:
    """Where a tensor must be that the group's backend can send: its GPU under NCCL, else the CPU."""
    config = dist.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
    return torch.device("cpu" if "cpu:" in config else config.partition(":")[0])


def _store(group: dist.ProcessGroup, purpose: str) -> Store:
    number = next(_counts[f"{group.group_name} {purpose}"])
    return PrefixStore(f"oialr-{purpose}-{number}", group.get_group_store())


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."
