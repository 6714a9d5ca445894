"""How several processes train one model: which wrapper they use, and what they agree on before step 1."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..compat.ddp import DdpReducer
from ..compat.torch_ import holds_back_gradients
from .group import Workers, collective_device
from .sharding import fsdp_modules, is_sharded
from .support import refuse_unsupported


_START = timedelta(seconds=20)
BASES = ("oialr_u", "oialr_vh")  # what marks the names of their buffers


class Parallel:
    """The wrapper of a model and the group of processes that it names; a single process has neither.

    The group is known at once from `DistributedDataParallel` itself and from FSDP2's mesh. A model that is wrapped out
    of sight, as the Trainer's, shows its wrapper at the first forward. Then, before step 1, the processes compare
    `facts()`, and a process that could not start lets the others know.

    Args:
        model, optimizer: as the user passed them.
        parameters: of the adapter, by name.
        facts: what must be the same on all processes.
        error: why this process cannot start, if it cannot.

    Raises:
        NotImplementedError: the model is sharded or wrapped in a way that is not supported.
        RuntimeError: the processes differ, or another one reports an error.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        parameters: dict[str, nn.Parameter],
        facts: Callable[[], dict[str, Any]],
        error: Exception | None = None,
    ) -> None:
        self.parameters, self.facts = parameters, facts
        self._fsdp = fsdp_modules(model)
        self.sharded = any(map(is_sharded, parameters.values()))
        self.reducer: DdpReducer | None = None
        self._begun, self._model = False, weakref.ref(model)
        self._workers = _workers(model, parameters)
        try:
            if error is None and (self._fsdp or self._workers is None or self._workers.size > 1):
                refuse_unsupported(model, optimizer)
        except NotImplementedError as unsupported:
            error = unsupported
        if self._workers is not None:
            self._workers.require_equal(facts(), error)
        else:  # most often all processes of the run; if some never come here, the model is not theirs
            Workers(dist.group.WORLD, "start").meet(error, patience=_START)
        self._wait_for_forward(model)

    @property
    def workers(self) -> Workers:
        """The processes that train this model.

        Raises:
            RuntimeError: there are several, but no wrapper was seen.
        """
        if self._workers is None:
            assert self.reducer is not None
            self._workers = Workers(self.reducer.require().process_group)
        return self._workers

    def before_update(self) -> None:
        """Bring the parameters into the state that an update needs, on all processes.

        Raises:
            RuntimeError: FSDP2 holds gradients that could not move with the bases.
        """
        if any(map(holds_back_gradients, self._fsdp)):
            raise RuntimeError(
                "An OIALR update came due inside a window of accumulation, of which FSDP2 keeps the gradients to "
                "itself (`set_requires_gradient_sync(False)`), so they could not move with the bases. Call "
                "`updater.step()` once for each `optimizer.step()`, right after it."
            )
        for module in self._fsdp:
            module.reshard()
        self._begin()
        if self.reducer is not None and self.reducer.averages_parameters:
            for parameter in self.parameters.values():
                dist.all_reduce(parameter.data, group=self.workers.group)
                parameter.data /= self.workers.size

    def after_update(self) -> None:
        """Shapes, or which buffers there are, have changed."""
        if self.reducer is not None:
            self.reducer.rebuild()

    def _wait_for_forward(self, model: nn.Module) -> None:
        if self._workers is not None and self._workers.size == 1:
            self._begun = True
        elif self.sharded:
            parallel = weakref.ref(self)
            handle = model.register_forward_pre_hook(lambda *_: (it := parallel()) and it._begin())
            weakref.finalize(self, handle.remove)
        else:
            begin = weakref.WeakMethod(self._begin)
            self.reducer = DdpReducer(model, self.parameters, BASES, lambda: (go := begin()) and go())

    def _begin(self) -> None:
        """Agree, once, before the first forward in training: ranks and steps may have been loaded meanwhile."""
        if not self._begun:
            self._begun = True
            self.workers.require_equal(self.facts())
            self.workers.introduce()
            if self.sharded and (model := self._model()) is not None:
                self._share_bases(model)

    @torch.no_grad()
    def _share_bases(self, model: nn.Module) -> None:
        """Those of process 0 on all: each has made its own, whose signs are free, and FSDP2 shares no buffers."""
        group: Any = self.workers.group
        for name, buffer in model.named_buffers():
            if any(mark in name for mark in BASES):
                sent = buffer.to(collective_device(group)).contiguous()
                dist.broadcast(sent, group=group, group_src=0)
                buffer.copy_(sent)


def _workers(model: nn.Module, parameters: dict[str, nn.Parameter]) -> Workers | None:
    """The processes that train `model`; None where there are several and the wrapper is not known yet."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return Workers()
    if isinstance(model, DistributedDataParallel):
        return Workers(model.process_group)
    for parameter in parameters.values():
        if isinstance(parameter, DTensor) and parameter.device_mesh.ndim == 1:
            return Workers(parameter.device_mesh.get_group())
        if isinstance(parameter, DTensor):
            return Workers(dist.group.WORLD)  # refused by name
    return None
