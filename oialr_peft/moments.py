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
from .linalg import Rotation
from .workers import full_tensor, is_sharded, set_block


# What each entry of an optimizer's per-parameter state is:
#   keep: has no coordinates; first: linear in the gradient; second: average of squared gradients;
#   row, col: second moment as means over the last and the last but one dimension, which are gone;
#   row_kept, col_kept: the same, with that dimension kept at size one.
_ADAM = {"step": "keep", "exp_avg": "first", "exp_avg_sq": "second", "max_exp_avg_sq": "second"}
OPTIMIZERS: dict[str, dict[str, str]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SGD": {"momentum_buffer": "first"},
    "Adafactor": {  # torch.optim's names, then transformers'
        "step": "keep",
        "row_var": "row_kept",
        "col_var": "col_kept",
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

    def transport(self, parameter: nn.Parameter, rotation: Rotation, *, was_dense: bool) -> None:
        """Move the state of `parameter`, which becomes leftᵀ parameter right; call it before or after the change.

        `was_dense` says that the parameter was a dense weight, not a sigma.
        """
        state = self.optimizer.state.get(parameter)
        if not state:
            return
        kinds = self._kinds(state)
        if self.policy == "reset" or kinds is None:
            del self.optimizer.state[parameter]
            return
        live = {key: _live(value, rotation) for key, value in state.items()}
        if self.policy == "slice":
            moved = {key: _slice(value, kinds[key], rotation, was_dense) for key, value in live.items()}
        else:
            moved = _rotate_state(live, kinds, rotation)
        for key, value in moved.items():
            if isinstance(value, torch.Tensor) and is_sharded(state[key]):
                set_block(state[key], value)
            else:
                state[key] = value

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


def _live(value: Any, rotation: Rotation) -> Any:
    """An entry of the state; of one that FSDP holds the part that belongs to the matrix of the rotation."""
    if not (isinstance(value, torch.Tensor) and is_sharded(value)):
        return value
    return full_tensor(value)[..., : rotation.left.shape[-2], : rotation.right.shape[-2]]


def _rotate_state(state: dict[str, Any], kinds: dict[str, str], rotation: Rotation) -> dict[str, Any]:
    left, right = rotation.left, rotation.right
    by_kind = {kinds[key]: value for key, value in state.items()}
    moved = {}
    for key, value in state.items():
        kind = kinds[key]
        if kind == "keep" or not isinstance(value, torch.Tensor):
            moved[key] = value
            continue
        if kind == "first":
            new = left.mT @ _as_matrix(value, rotation) @ right
        else:
            full = value if kind == "second" else _from_means(by_kind)
            new = left.square().mT @ _as_matrix(full, rotation) @ right.square()
            new = new if kind == "second" else _mean(new, kind)
        moved[key] = new.to(value.dtype).contiguous()
    return moved


def _as_matrix(value: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """A tensor of a parameter's shape in the matrix shape of its rotation; the kernel of a convolution has another."""
    shape = (*rotation.left.shape[:-1], rotation.right.shape[-2])
    return value.to(rotation.left.dtype).reshape(shape)


def _from_means(by_kind: dict[str, torch.Tensor]) -> torch.Tensor:
    """The second moment that its means stand for: row colᵀ / mean(row)."""
    row = by_kind["row_kept"] if "row_kept" in by_kind else by_kind["row"].unsqueeze(-1)
    col = by_kind["col_kept"] if "col_kept" in by_kind else by_kind["col"].unsqueeze(-2)
    return row * col / row.mean(dim=-2, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)


def _mean(second: torch.Tensor, kind: str) -> torch.Tensor:
    return second.mean(dim=-1 if kind.startswith("row") else -2, keepdim=kind.endswith("_kept"))


def _slice(value: Any, kind: str, rotation: Rotation, was_dense: bool) -> Any:
    """The authors' policy: zeros at factorisation, the top-left block at a cut, never rotated."""
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return value
    shape = _state_shape(kind, (*rotation.left.shape[:-2], rotation.rank, rotation.rank))
    return value.new_zeros(shape) if was_dense else value[tuple(map(slice, shape))].clone()


def _state_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an entry of this kind for a parameter of `shape`."""
    if kind.startswith("row"):
        return (*shape[:-1], 1) if kind == "row_kept" else shape[:-1]
    if kind.startswith("col"):
        return (*shape[:-2], 1, shape[-1]) if kind == "col_kept" else (*shape[:-2], shape[-1])
    return shape


def _fits(value: Any, kind: str, parameter: nn.Parameter) -> bool:
    if kind == "keep" or not isinstance(value, torch.Tensor):
        return True
    return value.shape == _state_shape(kind, tuple(parameter.shape))
