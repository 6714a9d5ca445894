"""Optimizer state through a rotation and a cut.

Moments live in the coordinates of the parameter they belong to. When a parameter P becomes leftᵀ P right, its gradient
becomes leftᵀ G right, so a moment that is linear in the gradient follows exactly. A moment of squared gradients has no
exact rule: the expectation of (leftᵀ G right)² for entries that vary independently is (left²)ᵀ V (right²), which keeps
it non-negative.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import nn

from .errors import OIALRWarning
from .svd import Rotation


# What each entry of an optimizer's per-parameter state is:
#   keep: has no coordinates; first: linear in the gradient; second: average of squared gradients;
#   row, col: second moment factored into row and column means.
_ADAM = {"step": "keep", "exp_avg": "first", "exp_avg_sq": "second", "max_exp_avg_sq": "second"}
OPTIMIZERS: dict[str, dict[str, str]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {"momentum_buffer": "first"},
    "Adafactor": {  # torch.optim's names, then transformers'
        "step": "keep",
        "row_var": "row",
        "col_var": "col",
        "variance": "second",
        "exp_avg": "first",
        "exp_avg_sq_row": "row",
        "exp_avg_sq_col": "col",
        "exp_avg_sq": "second",
        "RMS": "keep",
    },
}


class MomentCarrier:
    """Carries the state of one optimizer into new bases by one of the policies of `OIALRConfig.moments`.

    The state of an optimizer that is not in `OPTIMIZERS`, or with an entry that is not, is reset with one warning.
    """

    def __init__(self, optimizer: Any, policy: Literal["rotate", "slice", "reset"]) -> None:
        self.optimizer = inner_optimizer(optimizer)
        self.policy = policy
        self._warned = False

    def carry(self, parameter: nn.Parameter, rotation: Rotation, *, was_dense: bool) -> None:
        """Move the state of `parameter`, which becomes leftᵀ parameter right; call it before or after the change.

        `was_dense` says that the parameter was a dense weight, not a sigma.
        """
        state = self.optimizer.state.get(parameter)
        if not state:
            return
        kinds = self._kinds(state)
        if self.policy == "reset" or kinds is None:
            del self.optimizer.state[parameter]
        elif self.policy == "slice":
            state.update({key: _slice(value, kinds[key], rotation, was_dense) for key, value in state.items()})
        else:
            state.update(_rotate_state(state, kinds, rotation))

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
        names = [cls.__name__ for cls in type(self.optimizer).__mro__]
        table = next((OPTIMIZERS[name] for name in names if name in OPTIMIZERS), None)
        unknown = sorted(set(state) - set(table or {}))
        if table is not None and not unknown:
            return table
        if not self._warned and self.policy != "reset":
            self._warned = True
            what = f"state {', '.join(unknown)} of" if table else "the state of"
            warnings.warn(
                f"OIALR does not know how to carry {what} {type(self.optimizer).__module__}."
                f"{type(self.optimizer).__name__} through a basis update, so it is reset at each update of a layer. "
                f"Known optimizers: {', '.join(OPTIMIZERS)}. OIALRConfig(moments='reset') says that this is fine.",
                OIALRWarning,
                stacklevel=4,
            )
        return None


def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside wrappers such as Accelerate's."""
    while not isinstance(optimizer, torch.optim.Optimizer) or "optimizer" in vars(optimizer):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            raise TypeError(f"`optimizer` must be a torch optimizer or wrap one as `.optimizer`; got {optimizer!r}.")
        optimizer = inner
    return optimizer


def _rotate_state(state: dict[str, Any], kinds: dict[str, str], rotation: Rotation) -> dict[str, Any]:
    left, right = rotation.left, rotation.right
    by_kind = {kinds[key]: value for key, value in state.items()}
    moved = {}
    for key, value in state.items():
        kind = kinds[key]
        if kind == "keep" or not isinstance(value, torch.Tensor):
            moved[key] = value
            continue
        work = value.to(left.dtype)
        if kind == "first":
            new = left.T @ work @ right
        elif kind == "second":
            new = left.square().T @ work @ right.square()
        else:
            new = _rotate_mean(by_kind["row"].to(left.dtype), by_kind["col"].to(left.dtype), rotation, kind)
            new = new.reshape([n if n == 1 else rotation.rank for n in value.shape])
        moved[key] = new.to(value.dtype).contiguous()
    return moved


def _rotate_mean(row: torch.Tensor, col: torch.Tensor, rotation: Rotation, kind: str) -> torch.Tensor:
    """Row or column means (rank,) of the rotated second moment that `row` and `col` stand for, row colᵀ / mean."""
    rows = rotation.left.square().T @ row.flatten()
    cols = rotation.right.square().T @ col.flatten()
    mean = row.mean().clamp_min(torch.finfo(row.dtype).tiny)
    return rows * cols.mean() / mean if kind == "row" else cols * rows.mean() / mean


def _slice(value: Any, kind: str, rotation: Rotation, was_dense: bool) -> Any:
    """The authors' policy: zeros at factorisation, the top-left block at a cut, never rotated."""
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return value
    shape = [n if n == 1 else rotation.rank for n in value.shape]
    return value.new_zeros(shape) if was_dense else value[tuple(map(slice, shape))].clone()


def _fits(value: Any, kind: str, parameter: nn.Parameter) -> bool:
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return True
    return value.numel() in parameter.shape if kind in ("row", "col") else value.shape == parameter.shape
