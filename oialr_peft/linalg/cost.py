"""What a batch costs on its way through u @ sigma @ vh and back, by the order of the products."""

from __future__ import annotations

import torch


_FUNCTION = 20_000_000  # multiplications in the time that Python's part of an autograd.Function takes on a CPU


def cheapest_order(batch: int, n_in: int, rank: int, n_out: int) -> str:
    """Name of the order that takes least time in forward and backward, by the count of `multiplications`."""
    cheapest, *others = multiplications(batch, n_in, rank, n_out).items()
    for order in others:  # not min(): torch.compile cannot follow it where the batch is a symbol
        if order[1] < cheapest[1]:
            cheapest = order
    return cheapest[0]


def multiplications(batch: int, n_in: int, rank: int, n_out: int) -> dict[str, int]:
    """Multiplications of one forward and backward pass by order; x and sigma need gradients.

    `chain` multiplies x through the three factors. `folded` has sigma folded into the outer two on the way, by a
    Function of our own (kinds/product.py), and pays once the rank is not small. `rebuild` forms the weight: dearer at
    low rank, cheaper for square layers near full rank, where it costs (3 batch + 4 n) n² against a dense layer's
    3 batch n². Convolutions have no chain and fold once; the count is close enough for their choice to rebuild.
    """
    outer, square = 2 * batch * rank * (n_in + n_out), rank * rank
    return {
        "chain": outer + 3 * batch * square,
        "folded": outer + square * (batch + min(batch, n_in) + min(batch, n_out)) + _FUNCTION,
        "rebuild": 3 * batch * n_in * n_out + 2 * (n_in * n_out * rank + square * min(n_in, n_out)),
    }


def forward_multiplications(n_in: int, rank: int, n_out: int) -> int:
    """Multiplications per row of a forward pass over many rows, by the cheapest order."""
    return min(rank * (n_in + n_out), n_in * n_out)


def rebuild(u: torch.Tensor | None, sigma: torch.Tensor, vh: torch.Tensor | None) -> torch.Tensor:
    """The weight u @ sigma @ vh, without what is None; sigma goes into the smaller factor first."""
    if u is None or vh is None:
        product = sigma if u is None else u @ sigma
        return product if vh is None else product @ vh
    return u @ sigma @ vh if u.shape[-2] <= vh.shape[-1] else u @ (sigma @ vh)
