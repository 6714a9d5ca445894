"""A weight held as factors, W = left @ core @ right."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch


class Factors(NamedTuple):
    """W (rows, cols) = `left` @ `core` @ `right`; a basis that is None counts as the identity.

    As in the paper (section 3: U, Sigma, V^T), `left` (rows, rank) has orthonormal columns, `right` (rank, cols) has
    orthonormal rows, both are frozen, and the `core` (rank, rank), a dense matrix, is the only part that trains. A
    leading dimension holds several matrices of one rank, such as the groups of a convolution.
    """

    left: torch.Tensor | None
    core: torch.Tensor
    right: torch.Tensor | None

    def compose(self) -> torch.Tensor:
        """The weight (rows, cols), computed in `working_dtype` and cast once to the dtype of the core."""
        dtype = working_dtype(self.core.dtype)  # bases may be held in a shorter one
        product, *others = (part.to(dtype) for part in self if part is not None)
        for part in others:
            product = product @ part
        return product.to(self.core.dtype)

    def bases_to(self, dtype: torch.dtype) -> Factors:
        """The factors with bases of `dtype`."""
        left, right = (None if basis is None else basis.to(dtype) for basis in (self.left, self.right))
        return Factors(left, self.core, right)

    def transposed(self) -> Factors:
        """The factors of Wᵀ."""
        left, core, right = (None if part is None else part.mT for part in self)
        return Factors(right, cast(torch.Tensor, core), left)

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight as two matrices, with the core multiplied into the smaller basis, in `working_dtype`.

        Raises:
            ValueError: there are no bases, so there is nothing to fold into.
        """
        left, core, right = (None if part is None else part.to(working_dtype(part.dtype)) for part in self)
        core = cast(torch.Tensor, core)
        if left is None and right is None:
            raise ValueError("A dense weight has no two factors.")
        if left is None or right is None:
            return (core, right) if right is not None else (cast(torch.Tensor, left), core)
        return (left @ core, right) if left.numel() <= right.numel() else (left, core @ right)

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


def stored_size(matrix_shape: tuple[int, ...], rank: int) -> int:
    """How many values a compressed checkpoint holds of a layer: two factors, or the dense weight if that is less."""
    *groups, rows, cols = matrix_shape
    return min(math.prod(groups) * (rows + cols) * rank, math.prod(matrix_shape))


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
