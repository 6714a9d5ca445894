"""Factorisation at injection (`delay=0`) shared by the processes of a group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..config import OIALRConfig
from ..linalg import Directions, Rotation, decompose, leading_directions
from .find import shared_fields
from .rules import Target, initial_rank, targets_of
from .start import Start, factored_start, residual_start


if TYPE_CHECKING:
    import torch.distributed as dist

    from ..workers.exchange import Solution
    from ..workers.group import Workers
    from ..workers.plan import SvdTask


_workers: ContextVar[Workers | None] = ContextVar("oialr_workers", default=None)


@contextmanager
def factorise_together(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Within it, adapters made with `delay=0` share the SVDs of their start among processes.

    Without it every process makes all of them itself, since injection is often called on one process alone. Here all
    processes of the group must make the same adapter on the same weights, because each waits for the others' results.

    ```python
    with factorise_together():
        model = get_peft_model(model, OIALRConfig())
    ```

    Args:
        group: the processes; default `None` is all of `torch.distributed`. Where that is not initialised, one process
            alone, nothing changes.

    Raises:
        RuntimeError: on all processes, when their layers or configs differ or the SVD of one fails.
    """
    import torch.distributed as dist

    from ..workers.group import Workers

    if not dist.is_initialized():
        yield
        return
    token = _workers.set(Workers(dist.group.WORLD if group is None else group, "injection"))
    try:
        yield
    finally:
        _workers.reset(token)


def shared_starts(model: nn.Module, names: list[str], config: OIALRConfig) -> dict[str, Start]:
    """The weights that the chosen layers start with, by name; empty where every process is to make its own."""
    workers = _workers.get()
    if workers is None or config.delay or config.ranks is not None:
        return {}
    from ..workers.exchange import Exchange

    modules = dict(model.named_modules())
    targets = {target.name: target for name in names for target in targets_of(name, modules[name])}
    shapes = {name: list(target.shape) for name, target in targets.items()}
    workers.require_equal({**shared_fields(config), "the layers that are factorised": shapes})
    starts = _Starts(targets, config)
    Exchange(workers, starts.matrix, starts.decompose, starts.take).run([starts.task(name) for name in targets])
    return starts.found


class _Starts:
    """The phases of a shared start, for an `Exchange`."""

    def __init__(self, targets: dict[str, Target], config: OIALRConfig) -> None:
        self.targets, self.config = targets, config
        self.found: dict[str, Start] = {}

    def task(self, name: str) -> SvdTask:
        from ..workers.plan import SvdTask

        _, shape, weight, _ = self.targets[name]
        rank = initial_rank(name, min(shape[-2:]), self.config)
        return SvdTask(name, shape, rank, weight.dtype, weight.device, self.config.init, cut=False, dense=True)

    def matrix(self, task: SvdTask) -> torch.Tensor:
        return self.targets[task.name].matrix()

    def decompose(self, task: SvdTask, matrix: torch.Tensor) -> Solution | None:
        from ..workers.exchange import Solution

        if self.config.residual:
            found = leading_directions(matrix, task.rank, task.method)
            return None if found is None else Solution([found.left, found.right], found[2:])
        rotation = decompose(matrix, task.rank, task.method)
        return None if rotation is None else Solution([rotation.left, rotation.singular_values, rotation.right])

    def take(self, task: SvdTask, solution: Any) -> None:
        if self.config.residual:
            found = None if solution is None else Directions(*solution.tensors, *solution.words)
            self.found[task.name] = residual_start(task.name, self.matrix(task), found, self.config)
            return
        rotation = None if solution is None else Rotation(*solution.tensors)
        self.found[task.name] = factored_start(task.name, self.matrix(task), rotation, self.config)
