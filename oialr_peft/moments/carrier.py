"""MomentCarrier: applies the rules to the state of one optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from ..errors import tell
from ..linalg import Transport
from ..workers.sharding import full_tensor, is_sharded, set_block
from .rules import RULES, bounded, first, state_shape
from .table import OPTIMIZERS


_REFUSED_ELSEWHERE = "ZeroRedundancyOptimizer"  # which workers/support.py refuses, for another reason


class MomentCarrier:
    """Carries the state of one optimizer into new bases by one of the policies of `OIALRConfig.moments`.

    The state of an optimizer that is not in `OPTIMIZERS`, or with an entry that is not, is reset with one warning.
    """

    def __init__(self, optimizer: Any, policy: Literal["rotate", "slice", "reset"]) -> None:
        self.optimizer = inner_optimizer(optimizer)
        self.policy = policy
        self._gradients: dict[nn.Parameter, torch.Tensor] = {}
        self._warned = False

    @contextmanager
    def moving_gradients(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Inside, `transport` also gives each of `parameters` the gradient that it has now, in its new coordinates.

        A parameter that is resized drops its gradient, and with it part of an accumulation window that is under way.
        """
        self._gradients = {p: p.grad for p in parameters if p.grad is not None}
        try:
            yield
        finally:
            self._gradients = {}

    def transport(self, parameter: nn.Parameter, transport: Transport, *, was_dense: bool) -> None:
        """Move the state of `parameter`, which `transport` has moved.

        `was_dense` says that the parameter was a dense weight, not a sigma.
        """
        if (gradient := self._gradients.pop(parameter, None)) is not None:
            parameter.grad = _stored(gradient, first(_live(gradient, transport), transport, {}).to(gradient.dtype))
        state = self.optimizer.state.get(parameter)
        if not state:
            return
        kinds = self._kinds(state)
        if self.policy == "reset" or kinds is None:
            del self.optimizer.state[parameter]
            return
        live = {key: _live(value, transport) for key, value in state.items()}
        if self.policy == "slice":
            moved = {key: _slice(value, kinds[key], transport, was_dense) for key, value in live.items()}
        else:
            moved = _rotate(live, kinds, transport)
        for key, value in moved.items():
            state[key] = _stored(state[key], value)

    def squared_gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The mean square of each entry's gradient, in the shape of `parameter`; None where the optimizer keeps none,
        or does not carry it along."""
        state = self.optimizer.state.get(parameter) or {}
        kinds = (self._kinds(state) if state and self.policy == "rotate" else None) or {}
        squares = [value for key, value in state.items() if kinds.get(key) in ("second", "centred")]
        whole = [value for value in squares if value.shape == parameter.shape and not is_sharded(value)]
        return bounded(whole[0]) if whole else None

    def drop(self, parameters: dict[str, nn.Parameter]) -> list[str]:
        """Drop the state of parameters; returns the names of those that had one."""
        return [name for name, parameter in parameters.items() if self.optimizer.state.pop(parameter, None)]

    def drop_stale(self, parameters: dict[str, nn.Parameter]) -> list[str]:
        """Drop state whose shape is not its parameter's (an adapter was reloaded under it); returns the names."""
        stale = []
        for name, parameter in parameters.items():
            state = self.optimizer.state.get(parameter) or {}
            kinds = self._kinds(state) or {}
            if not all(_fits(value, kinds.get(key, "keep"), parameter) for key, value in state.items()):
                del self.optimizer.state[parameter]
                stale.append(name)
        return stale

    def _kinds(self, state: dict[str, Any]) -> dict[str, str] | None:
        table = table_of(self.optimizer)
        unknown = sorted(set(state) - set(table or {}))
        if table is not None and not unknown:
            return table
        if not self._warned and self.policy != "reset":
            self._warned = True
            what = f"state {', '.join(unknown)} of" if table else "the state of"
            tell(
                f"OIALR does not know how to carry {what} {type(self.optimizer).__module__}."
                f"{type(self.optimizer).__name__} through a basis update, so it is reset at each update of a layer. "
                f"Known optimizers: {', '.join(OPTIMIZERS)}. OIALRConfig(moments='reset') says that this is fine."
            )
        return None


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's.

    Raises:
        TypeError: there is none.
        ValueError: one around another, each with a state of its own (Lookahead): only one could be carried.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) or "optimizer" in vars(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise TypeError(f"`optimizer` must be a torch optimizer or wrap one as `.optimizer`; got {optimizer!r}.")
        if isinstance(optimizer, torch.optim.Optimizer) and optimizer.state is not inner.state:
            _refuse_nested(optimizer, inner)
        optimizer = inner
    held = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    inside = [other for other in held if other.state is not optimizer.state]  # Lightning's share it
    if inside and table_of(optimizer) is None and type(optimizer).__name__ != _REFUSED_ELSEWHERE:
        _refuse_nested(optimizer, inside[0])
    return optimizer


def _refuse_nested(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> None:
    raise ValueError(
        f"{type(outer).__name__} holds another optimizer, {type(inner).__name__}, and a state beside that one's. "
        f"OIALR carries one state through basis updates, not two: train with {type(inner).__name__} alone. If the "
        "outer one keeps nothing from one step to the next (SAM), hand the inner one to the updater."
    )


def table_of(optimizer: torch.optim.Optimizer) -> dict[str, str] | None:
    """The row of `OPTIMIZERS` for an optimizer, None for one that is not known."""
    names = [cls.__name__ for cls in type(optimizer).__mro__]
    return next((OPTIMIZERS[name] for name in names if name in OPTIMIZERS), None)


def _live(value: Any, transport: Transport) -> Any:
    """An entry of the state; of one that FSDP holds the part that belongs to the matrix of the transport."""
    if not (isinstance(value, torch.Tensor) and is_sharded(value)):
        return value
    left, right = transport
    if left is None or right is None:
        raise NotImplementedError("Under FSDP2 both bases must be frozen: use OIALRConfig(bases='frozen').")
    return full_tensor(value)[..., : left.shape[-2], : right.shape[-2]]


def _stored(old: Any, new: Any) -> Any:
    """What takes the place of an old entry: the new one or, where FSDP holds it, the old one filled with it."""
    if not (isinstance(old, torch.Tensor) and is_sharded(old)):
        return new
    set_block(old, new)
    return old


def _rotate(state: dict[str, Any], kinds: dict[str, str], transport: Transport) -> dict[str, Any]:
    entries = {kinds[key]: value for key, value in state.items() if isinstance(value, torch.Tensor)}

    def moved(key: str, value: Any) -> Any:
        if kinds[key] == "keep" or not isinstance(value, torch.Tensor):
            return value
        return RULES[kinds[key]](value, transport, entries).to(value.dtype).contiguous()

    return {key: moved(key, value) for key, value in state.items()}


def _slice(value: Any, kind: str, transport: Transport, was_dense: bool) -> Any:
    """The authors' policy: zeros at factorisation, the top-left block at a cut, never rotated."""
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return value
    left, right = transport
    if left is None or right is None:
        raise NotImplementedError("moments='slice' is a rule for frozen bases; use moments='rotate'.")
    shape = state_shape(kind, (*left.shape[:-2], left.shape[-1], right.shape[-1]))
    return value.new_zeros(shape) if was_dense else value[tuple(map(slice, shape))].clone()


def _fits(value: Any, kind: str, parameter: nn.Parameter) -> bool:
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return True
    return value.shape == state_shape(kind, tuple(parameter.shape))
