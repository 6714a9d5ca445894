"""A weight held as three factors, W = u @ sigma @ vh."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Factors(NamedTuple):
    """W (rows, cols) = `u` (rows, rank) @ `sigma` (rank, rank) @ `vh` (rank, cols).

    A leading dimension holds several matrices of one rank, such as the groups of a convolution. `u` has orthonormal
    columns and `vh` orthonormal rows; both are frozen. `sigma` is a dense square matrix and the only part that trains
    (paper, section 3: U, Sigma, V^T).
    """

    u: torch.Tensor
    sigma: torch.Tensor
    vh: torch.Tensor

    def compose(self) -> torch.Tensor:
        """The weight (rows, cols), computed in `working_dtype` and cast once to the dtype of `sigma`."""
        u, sigma, vh = (part.to(working_dtype(part.dtype)) for part in self)
        return (u @ sigma @ vh).to(self.sigma.dtype)

    def error(self, matrix: torch.Tensor) -> float:
        """Relative Frobenius distance of the product from `matrix`; 0 where both are zero."""
        matrix = matrix.detach().to(working_dtype(matrix.dtype))
        size = torch.linalg.vector_norm(matrix)
        return float(torch.linalg.vector_norm(matrix - self.compose()) / size.clamp_min(torch.finfo(size.dtype).tiny))


def factor_shapes(matrix_shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of u, sigma and vh of a matrix (rows, cols), or of several (groups, rows, cols), at `rank`."""
    *groups, rows, cols = matrix_shape
    return (*groups, rows, rank), (*groups, rank, rank), (*groups, rank, cols)


def factored_size(matrix_shape: tuple[int, ...], rank: int) -> int:
    """How many values u, sigma and vh hold at `rank`."""
    return sum(math.prod(shape) for shape in factor_shapes(matrix_shape, rank))


def two_factor_size(matrix_shape: tuple[int, ...], rank: int) -> int:
    """How many values are held at `rank` once sigma is folded into u or vh."""
    u, _, vh = factor_shapes(matrix_shape, rank)
    return math.prod(u) + math.prod(vh)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which decompositions and products of factors are computed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def orthonormality_error(basis: torch.Tensor) -> float:
    """Spectral norm of basisᵀ basis − I for a basis of shape (length, rank), computed in float64."""
    basis = basis.to(torch.float64)
    identity = torch.eye(basis.shape[-1], dtype=basis.dtype, device=basis.device)
    return float(torch.linalg.matrix_norm(basis.mT @ basis - identity, ord=2).max())


def reorthonormalise(basis: torch.Tensor) -> torch.Tensor:
    """One Newton-Schulz step towards the nearest orthonormal basis; `basis` (length, rank) must be close to one.

    Products of rotations drift away from orthonormality by a rounding error each. The step squares that error
    (‖bᵀb − I‖ = e becomes about 3/4 e²) for the price of one more product, so hundreds of updates stay at rounding
    level.
    """
    return 1.5 * basis - 0.5 * basis @ (basis.mT @ basis)
