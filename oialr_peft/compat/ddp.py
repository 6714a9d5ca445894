"""DDP through a change of shapes: its reducer is built for the shapes that parameters had when it was made.

Private in torch, seen in 2.7 to 2.13: what `DistributedDataParallel.__setstate__` calls to build a reducer
(`_build_params_for_reducer`, `_build_debug_param_to_name_mapping`, `_ddp_init_helper`, `_set_static_graph` of reducer
and logger), `_comm_hooks`, `_get_ddp_logging_data`, `_delay_*`, `_join_config`, `_module_parameters`,
`_get_active_ddp_module`, `_set_params_and_buffers_to_ignore_for_model`, `_register_builtin_comm_hook`. It can go once
DDP has a public way to rebuild its reducer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class DdpReducer:
    """Finds the DDP wrapper of a model and keeps its reducer right, whoever changes the shapes of parameters.

    A new wrapper would not do: training loops hold the old one in local variables. So the same wrapper gets a new
    reducer, as it does when it is unpickled, and everything else of it stays. The wrapper is the model itself, or the
    one inside whose forward the model runs. Before every forward the shapes are compared with those of the reducer.

    Args:
        model: the model that trains, wrapped or not.
        parameters: of the adapter, by name; the wrapper must know each of them.
        frozen: the names that mark buffers which never change between updates and need not be sent at every step.
        before_first: called once, before or inside the first forward in training.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        frozen: Iterable[str],
        before_first: Callable[[], object],
    ) -> None:
        self.parameters = parameters
        self.frozen = tuple(frozen)
        self._ddp: weakref.ref[DistributedDataParallel] | None = None
        self._before_first: Callable[[], object] | None = before_first
        self._shapes: list[torch.Size] | None = None
        if isinstance(model, DistributedDataParallel):
            self.adopt(model)
        else:
            self._watch(model)

    @property
    def ddp(self) -> DistributedDataParallel | None:
        return None if self._ddp is None else self._ddp()

    def _watch(self, module: nn.Module) -> None:
        reducer = weakref.ref(self)
        handle = module.register_forward_pre_hook(lambda module, _: cast(Any, _look)(reducer(), module))
        weakref.finalize(self, handle.remove)

    def rebuild(self) -> None:
        """Build the reducer again for the present shapes; to be called between steps, on all processes.

        Raises:
            RuntimeError: no wrapper was seen, so gradients would not be averaged.
        """
        ddp = self.require()
        hooks, builtin = ddp._comm_hooks, _builtin_hook(ddp)
        self._ignore_frozen(ddp)
        # The reducer's own hooks go with its last reference; the logger holds one too.
        ddp.reducer = ddp.logger = cast(Any, None)
        _fit_delayed(ddp)
        parameters, sparse = ddp._build_params_for_reducer()
        names = ddp._build_debug_param_to_name_mapping(parameters)
        ddp._ddp_init_helper(parameters, sparse, names, ddp.static_graph)
        ddp._has_rebuilt_buckets = False
        if ddp.static_graph:
            ddp._static_graph_delay_allreduce_enqueued = False
            cast(Any, ddp.reducer)._set_static_graph()
            cast(Any, ddp.logger)._set_static_graph()
        ddp._comm_hooks = []
        for hook, state in hooks:
            _forget_buckets(state)
            ddp.register_comm_hook(state, hook)
        if builtin is not None:
            ddp._register_builtin_comm_hook(builtin)
        self._shapes = self._present_shapes()

    def require(self) -> DistributedDataParallel:
        """The wrapper.

        Raises:
            RuntimeError: none was seen.
        """
        if (ddp := self.ddp) is None:
            raise RuntimeError(
                "Several processes train this model, but not through DistributedDataParallel, so OIALR cannot keep "
                "them alike. Wrap the model (the Trainer and `accelerator.prepare` do), or train on one process."
            )
        return ddp

    @property
    def averages_parameters(self) -> bool:
        """Whether the processes step apart from each other at present, and average their parameters now and then."""
        from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

        ddp = self.require()
        states = [state for _, state in ddp._comm_hooks]
        local = any(isinstance(s, PostLocalSGDState) and s.iter >= s.start_localSGD_iter for s in states)
        return local or not ddp.require_backward_grad_sync

    def _present_shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self.parameters.values()]

    def adopt(self, ddp: DistributedDataParallel) -> None:
        """Keep the reducer of this wrapper right from now on.

        Raises:
            RuntimeError, NotImplementedError: it does not know the adapter, or its reducer cannot be rebuilt.
        """
        known = {id(parameter) for parameter in [*ddp._module_parameters, *ddp._delay_all_reduce_params]}
        if missing := [name for name, parameter in self.parameters.items() if id(parameter) not in known]:
            raise RuntimeError(
                f"DistributedDataParallel was made before the adapter and does not know {len(missing)} of its "
                f"parameters, first that of '{missing[0]}'; their gradients would not be averaged. Inject the adapter "
                "first, then wrap the model."
            )
        if ddp.mixed_precision is not None:
            raise NotImplementedError(
                "OIALR does not support DistributedDataParallel(mixed_precision=...), whose reducer cannot be rebuilt "
                "after a cut. Use autocast (`bf16=True` in the Trainer) instead."
            )
        if ddp._delay_all_reduce_all_params:
            raise NotImplementedError(
                "OIALR does not support DistributedDataParallel(delay_all_reduce_named_params=...) with all "
                "parameters in it. Leave out those of the adapter."
            )
        self._ddp, self._shapes = weakref.ref(ddp), None  # shapes may have changed since it was made
        self._watch(ddp)

    def check(self, ddp: DistributedDataParallel, inside: bool) -> None:
        """Before a forward in training, or `inside` the first one."""
        if ddp._join_config.enable:
            raise NotImplementedError(
                "OIALR does not support torch's `Join`: a process that has run out of batches takes no part in the "
                "updates. Give all processes the same number of batches (`drop_last=True`, or a sampler that repeats)."
            )
        if self._before_first is not None:
            before_first, self._before_first = self._before_first, None
            before_first()
        if self._shapes != self._present_shapes():
            self.rebuild()
            if inside and ddp.require_backward_grad_sync:
                cast(Any, ddp.reducer).prepare_for_forward()  # the old one was told; this one has not been

    def _ignore_frozen(self, ddp: DistributedDataParallel) -> None:
        """Leave the frozen bases out of what is sent before every forward."""
        module = cast(Any, ddp.module)
        names = [name for name, _ in ddp.module.named_buffers()]
        ours = [name for name in names if any(f".{part}." in name for part in self.frozen)]
        others = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ())) - set(ours)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(others) + ours)
        ddp.parameters_to_ignore |= set(ours)


@torch.compiler.disable
def _look(reducer: DdpReducer | None, module: nn.Module) -> None:
    """Before a forward: find the wrapper that runs it. In eval a model may run without; then the old one stays."""
    if reducer is None or not torch.is_grad_enabled():
        return
    if isinstance(module, DistributedDataParallel):
        reducer.check(module, inside=False)
    elif (active := DistributedDataParallel._get_active_ddp_module()) is None:
        if module.training:
            reducer.require()
    elif reducer.ddp is not active:
        reducer.adopt(active)
        reducer.check(active, inside=True)


def _builtin_hook(ddp: DistributedDataParallel) -> Any:
    """The C++ hook that is registered, such as FP16 compression; DDP itself remembers its name alone."""
    name = ddp._get_ddp_logging_data().get("comm_hook", "")
    kinds = cast(Any, dist).BuiltinCommHookType.__members__.values()
    return next((kind for kind in kinds if str(kind) == name), None)


def _fit_delayed(ddp: DistributedDataParallel) -> None:
    """New views into the buffer of gradients whose reduction is delayed, where one of them changed its shape."""
    delayed = ddp._delay_all_reduce_params
    if [parameter.shape for parameter in delayed] == [view.shape for view in ddp._delay_grad_views]:
        return
    old = cast(torch.Tensor, ddp._delay_grad_buffer)
    ddp._delay_grad_buffer = old.new_zeros(sum(parameter.numel() for parameter in delayed))
    pieces = ddp._delay_grad_buffer.split([parameter.numel() for parameter in delayed])
    views = [piece.view(parameter.shape) for piece, parameter in zip(pieces, delayed, strict=True)]
    ddp._delay_grad_views[:] = views
    for parameter, view in zip(delayed, views, strict=True):
        parameter.grad = None if parameter.grad is None else view.copy_(parameter.grad)


def _forget_buckets(state: Any) -> None:
    """Make PowerSGD start over for the new buckets: what it remembers has the shapes of the old ones.

    Two steps are reduced in full before it compresses again, because DDP arranges its buckets after the first.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    if isinstance(state, PowerSGDState):
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = min(state.iter, max(0, state.start_powerSGD_iter - 2))
