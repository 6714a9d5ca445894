"""DDP through a change of shapes: its reducer is built for the shapes that parameters had when it was made."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class ReducerKeeper:
    """Finds the DDP wrapper of a model and keeps its reducer true.

    A new wrapper would not do: training loops hold the old one in local variables. So the same object is initialised
    again, with its own arguments. The wrapper is the model itself, or the one inside whose forward the model runs.

    Args:
        model: the model that trains, wrapped or not.
        parameters: of the adapter, by name; the wrapper must know each of them.
        frozen: the names that mark buffers which never change between updates and need not be sent at every step.
    """

    def __init__(self, model: nn.Module, parameters: dict[str, nn.Parameter], frozen: Iterable[str]) -> None:
        self.parameters = parameters
        self.frozen = tuple(frozen)
        self._ddp: weakref.ref[DistributedDataParallel] | None = None
        if isinstance(model, DistributedDataParallel):
            self._adopt(model)
        else:
            keeper = weakref.ref(self)
            handle = model.register_forward_pre_hook(lambda module, _: _look(keeper(), module))
            weakref.finalize(self, handle.remove)

    @property
    def ddp(self) -> DistributedDataParallel | None:
        return None if self._ddp is None else self._ddp()

    def rebuild(self) -> None:
        """Make the reducer anew for the present shapes; to be called between steps, on all processes.

        Raises:
            RuntimeError: no wrapper was seen, so gradients would not be averaged.
        """
        ddp = self.require()
        hooks = {name: value for name, value in vars(ddp).items() if name.endswith("_hooks") and name[0] == "_"}
        comm_hooks, training = hooks.pop("_comm_hooks"), ddp.training
        hooks.pop("_accum_grad_hooks", None)
        arguments = _arguments(ddp)
        self._ignore_frozen(ddp)
        # The reducer's own hooks go with its last reference; the logger holds one too.
        ddp.reducer = ddp.logger = cast(Any, None)
        DistributedDataParallel.__init__(ddp, **arguments)
        vars(ddp).update(hooks)
        for hook, state in comm_hooks:
            ddp.register_comm_hook(state, hook)
        ddp.train(training)

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

    def _adopt(self, ddp: DistributedDataParallel) -> None:
        known = {id(parameter) for parameter in ddp._module_parameters}
        if missing := [name for name, parameter in self.parameters.items() if id(parameter) not in known]:
            raise RuntimeError(
                f"DistributedDataParallel was made before the adapter and does not know {len(missing)} of its "
                f"parameters, first that of '{missing[0]}'; their gradients would not be averaged. Inject the adapter "
                "first, then wrap the model."
            )
        if ddp.mixed_precision is not None:
            raise NotImplementedError(
                "OIALR does not support DistributedDataParallel(mixed_precision=...), which cannot be made anew "
                "after a cut. Use autocast (`bf16=True` in the Trainer) instead."
            )
        self._ddp = weakref.ref(ddp)
        self._ignore_frozen(ddp)
        ddp.parameters_to_ignore |= set(cast(Any, ddp.module)._ddp_params_and_buffers_to_ignore)
        ddp._assign_modules_buffers()

    def _ignore_frozen(self, ddp: DistributedDataParallel) -> None:
        """Leave the frozen bases out of what is sent before every forward."""
        module = cast(Any, ddp.module)
        names = [name for name, _ in ddp.module.named_buffers()]
        ours = [name for name in names if any(f".{part}." in name for part in self.frozen)]
        others = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ())) - set(ours)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(others) + ours)


def _look(keeper: ReducerKeeper | None, model: nn.Module) -> None:
    """Before a forward: remember the wrapper that runs it. In eval a model may run without; then the old one stays."""
    if keeper is None:
        return
    active = DistributedDataParallel._get_active_ddp_module()
    if active is not None and keeper.ddp is not active:
        keeper._adopt(active)
    elif active is None and model.training and torch.is_grad_enabled():
        keeper.require()


def _arguments(ddp: DistributedDataParallel) -> dict[str, Any]:
    """The arguments that would make this wrapper again, for this version of torch, without a new first sync."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    arguments: dict[str, Any] = {
        "module": ddp.module,
        "device_ids": ddp.device_ids,
        "output_device": ddp.output_device,
        "dim": ddp.dim,
        "process_group": ddp.process_group,
        "find_unused_parameters": ddp.find_unused_parameters,
        "gradient_as_bucket_view": ddp.gradient_as_bucket_view,
        "static_graph": ddp.static_graph,
        "init_sync": False,
    }
    if not ddp.bucket_bytes_cap_default:
        arguments["bucket_cap_mb"] = ddp.bucket_bytes_cap / 2**20
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    arguments[sync] = getattr(ddp, sync)
    for name in ("skip_all_reduce_unused_params", "batched_grad_copy"):
        if name in known:
            arguments[name] = getattr(ddp, name)
    return arguments
