"""The order in which x @ a @ sigma @ b is multiplied."""

from __future__ import annotations

import torch


def contract(x: torch.Tensor, a: torch.Tensor, sigma: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x (..., n_in) @ a (n_in, rank) @ sigma (rank, rank) @ b (rank, n_out), in the cheapest order.

    The choice depends on shapes alone, so a checkpointed forward and its recomputation take the same way.
    """
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    order = cheapest_order(rows, a.shape[0], sigma.shape[0], b.shape[1])
    if order == "chain":
        return x @ a @ sigma @ b
    if order == "fold_left":
        return x @ (a @ sigma) @ b
    if order == "fold_right":
        return x @ a @ (sigma @ b)
    return x @ (a @ sigma @ b if a.shape[0] <= b.shape[1] else a @ (sigma @ b))


def cheapest_order(rows: int, n_in: int, rank: int, n_out: int) -> str:
    """Name of the order with the fewest multiplications in forward and backward (a and b are frozen, x is not)."""
    costs = multiplications(rows, n_in, rank, n_out)
    return min(costs, key=costs.__getitem__)


def multiplications(rows: int, n_in: int, rank: int, n_out: int) -> dict[str, int]:
    """Multiplications of one forward and backward pass by order.

    `chain` multiplies x through the three factors. `fold_left` and `fold_right` first fold sigma into one factor,
    which saves the rows x rank x rank product but adds the gradient of that factor. `rebuild` forms the weight: dearer
    at low rank, cheaper for square layers near full rank, where the chain costs 7/3 of a dense layer.
    """
    thin, square = rank * (n_in + n_out), rank * rank
    return {
        "chain": 2 * rows * thin + 3 * rows * square,
        "fold_left": 2 * rows * thin + rows * rank * n_in + 2 * square * n_in,
        "fold_right": 2 * rows * thin + rows * rank * n_out + 2 * square * n_out,
        "rebuild": 3 * rows * n_in * n_out + 2 * (n_in * n_out * rank + square * min(n_in, n_out)),
    }


def forward_multiplications(n_in: int, rank: int, n_out: int) -> int:
    """Multiplications per row of a forward pass over many rows, by the cheapest order."""
    return min(rank * (n_in + n_out), n_in * n_out)
