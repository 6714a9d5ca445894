"""How each kind of optimizer state follows a rotation: one rule per kind.

State lives in the coordinates of the parameter it belongs to. When a parameter P becomes leftᵀ P right, its gradient
becomes leftᵀ G right, so whatever is linear in the gradient, or a step to be taken, follows exactly. Squared gradients
have no exact rule: the expectation of (leftᵀ G right)² for entries that vary independently is (left²)ᵀ V (right²),
which keeps them non-negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..linalg import Rotation


Entries = dict[str, torch.Tensor]  # the entries of one parameter by kind, as they were before the rotation
Rule = Callable[[torch.Tensor, Rotation, Entries], torch.Tensor]


def first(value: torch.Tensor, rotation: Rotation, _: Entries) -> torch.Tensor:
    """Linear in the gradient, or a step along the parameter; exact."""
    return rotation.left.mT @ _as_matrix(value, rotation) @ rotation.right


def second(value: torch.Tensor, rotation: Rotation, _: Entries) -> torch.Tensor:
    """An average, sum or maximum of squares, entry by entry."""
    return rotation.left.square().mT @ _as_matrix(value, rotation) @ rotation.right.square()


def centred(value: torch.Tensor, rotation: Rotation, entries: Entries) -> torch.Tensor:
    """As `second`; where a mean is kept beside it, which the optimizer subtracts squared, only the rest is spread out.

    Otherwise the difference, a variance whose root is taken, could become negative.
    """
    if "mean" not in entries:
        return second(value, rotation, entries)
    mean = _as_matrix(entries["mean"], rotation)
    variance = (_as_matrix(value, rotation) - mean.square()).clamp_min(0.0)
    return second(variance, rotation, entries) + first(mean, rotation, entries).square()


def largest(value: torch.Tensor, rotation: Rotation, entries: Entries) -> torch.Tensor:
    """A decayed maximum of absolute values (Adamax): a scale of the gradient, so its square moves as one.

    The bound that is sure, |left|ᵀ value |right|, is too large by about √n on either side, so steps would collapse.
    """
    return second(_as_matrix(value, rotation).square(), rotation, entries).sqrt()


def _means(kind: str) -> Rule:
    def rule(_: torch.Tensor, rotation: Rotation, entries: Entries) -> torch.Tensor:
        moved = second(_from_means(entries), rotation, entries)
        return moved.mean(dim=-1 if kind.startswith("row") else -2, keepdim=kind.endswith("_kept"))

    return rule


# `keep`, which has no coordinates, needs no rule. `row` and `col`: squares as means over the last and the last but one
# dimension, which are gone; `row_kept`, `col_kept`: the same, with that dimension kept at size one.
RULES: dict[str, Rule] = {
    "first": first,
    "mean": first,
    "second": second,
    "centred": centred,
    "largest": largest,
    **{kind: _means(kind) for kind in ("row", "col", "row_kept", "col_kept")},
}


def state_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an entry of this kind for a parameter of `shape`."""
    if kind.startswith("row"):
        return (*shape[:-1], 1) if kind == "row_kept" else shape[:-1]
    if kind.startswith("col"):
        return (*shape[:-2], 1, shape[-1]) if kind == "col_kept" else (*shape[:-2], shape[-1])
    return shape


def _as_matrix(value: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """A tensor of a parameter's shape in the matrix shape of its rotation; the kernel of a convolution has another."""
    shape = (*rotation.left.shape[:-1], rotation.right.shape[-2])
    return value.to(rotation.left.dtype).reshape(shape)


def _from_means(entries: Entries) -> torch.Tensor:
    """The second moment that its means stand for: row colᵀ / mean(row)."""
    row = entries["row_kept"] if "row_kept" in entries else entries["row"].unsqueeze(-1)
    col = entries["col_kept"] if "col_kept" in entries else entries["col"].unsqueeze(-2)
    return row * col / row.mean(dim=-2, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
