"""The nearest orthogonal matrix, approximately: the direction of a spectral step."""

from __future__ import annotations

import torch


Coefficients = tuple[float, float, float]
QUINTIC: Coefficients = (3.4445, -4.775, 2.0315)  # Jordan's: five steps pull singular values into 0.7 to 1.2


def orthogonalise(
    matrix: torch.Tensor, coefficients: Coefficients = QUINTIC, steps: int = 5, eps: float = 1e-7
) -> torch.Tensor:
    """U Vᵀ of `matrix` (..., rows, cols) = U S Vᵀ, approximately, in the dtype of `matrix`.

    The quintic Newton-Schulz iteration of Muon (Jordan et al. 2024), for one matrix or for a stack of them. For
    orthonormal P and Q, orthogonalise(Pᵀ M Q) = Pᵀ orthogonalise(M) Q, so it does not see a rotation of the bases.
    """
    a, b, c = coefficients
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
