"""How each kind of optimizer state follows a rotation: one rule per kind.

State lives in the coordinates of the parameter it belongs to. When a parameter P becomes leftᵀ P right, its gradient
becomes leftᵀ G right, so whatever is linear in the gradient, or a step to be taken, follows exactly. Squared gradients
have no exact rule: the expectation of (leftᵀ G right)² for entries that vary independently is (left²)ᵀ V (right²),
which keeps them non-negative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..linalg import Transport


Entries = dict[str, torch.Tensor]  # the entries of one parameter by kind, as they were before the rotation
Rule = Callable[[torch.Tensor, Transport, Entries], torch.Tensor]


def first(value: torch.Tensor, transport: Transport, _: Entries) -> torch.Tensor:
    """Linear in the gradient, or a step along the parameter; exact."""
    return transport(as_matrix(value, transport))


def second(value: torch.Tensor, transport: Transport, _: Entries) -> torch.Tensor:
    """An average, sum or maximum of squares, entry by entry."""
    return transport.squared()(bounded(as_matrix(value, transport)))


def bounded(squares: torch.Tensor) -> torch.Tensor:
    """Squares in which overflow has become the largest finite one: it halts its entry, and spread out it halts all."""
    overflow = torch.isposinf(squares)
    return squares.where(~overflow, squares.masked_fill(overflow, 0.0).amax()) if squares.numel() else squares


def centred(value: torch.Tensor, transport: Transport, entries: Entries) -> torch.Tensor:
    """As `second`; where a mean is kept beside it, which the optimizer subtracts squared, only the rest is spread out.

    Otherwise the difference, a variance whose root is taken, could become negative.
    """
    if "mean" not in entries:
        return second(value, transport, entries)
    mean = as_matrix(entries["mean"], transport)
    variance = (as_matrix(value, transport) - mean.square()).clamp_min(0.0)
    return second(variance, transport, entries) + first(mean, transport, entries).square()


def largest(value: torch.Tensor, transport: Transport, entries: Entries) -> torch.Tensor:
    """A decayed maximum of absolute values (Adamax): a scale of the gradient, so its square moves as one.

    The bound that is sure, |left|ᵀ value |right|, is too large by about √n on either side, so steps would collapse.
    """
    return second(as_matrix(value, transport).square(), transport, entries).sqrt()


def _means(kind: str) -> Rule:
    def rule(_: torch.Tensor, transport: Transport, entries: Entries) -> torch.Tensor:
        moved = second(_from_means(entries), transport, entries)
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


def as_matrix(value: torch.Tensor, transport: Transport) -> torch.Tensor:
    """A tensor of a parameter's shape as the matrix that is moved; the kernel of a convolution has another shape."""
    left, right = transport
    if left is not None:
        return value.to(left.dtype).reshape(*left.shape[:-1], -1)
    if right is not None:
        return value.to(right.dtype).reshape(*right.shape[:-2], -1, right.shape[-2])
    return value


def _from_means(entries: Entries) -> torch.Tensor:
    """The second moment that its means stand for: row colᵀ / mean(row)."""
    row = entries["row_kept"] if "row_kept" in entries else entries["row"].unsqueeze(-1)
    col = entries["col_kept"] if "col_kept" in entries else entries["col"].unsqueeze(-2)
    return row * col / row.mean(dim=-2, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
