"""The nearest orthogonal matrix: approximately for the direction of a spectral step, exactly for measurements.

Beside it, for measurements too, the mixing: the triangular R of W = Q R.
"""

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


def polar(matrix: torch.Tensor, rank: int | None = None) -> torch.Tensor:
    """U Vᵀ of `matrix` (..., rows, cols) = U S Vᵀ exactly, of its first `rank` singular values (default: of all).

    The basis whose settling OIALR builds on (paper, section 3). Signs and rotations that an SVD leaves open cancel.
    Singular values that are zero but for rounding have no direction, and are left out.
    """
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    rounding = torch.finfo(matrix.dtype).eps * max(matrix.shape[-2:])
    kept = (values > rounding * values.amax(-1, keepdim=True)).to(matrix.dtype)
    return u[..., :rank] * kept[..., None, :rank] @ vh[..., :rank, :]


def stability(before: torch.Tensor, after: torch.Tensor) -> float:
    """How far a basis stayed: 1 where two polar factors agree, about 0 where they have nothing in common.

    trace(beforeᵀ after) / n, where n is the smaller of their ranks; for full rank this is the mean cosine between
    matching columns. Of stacks of matrices it is the mean, by their ranks. 0 where one of them is the factor of zeros.
    """
    rank = min(float(before.square().sum()), float(after.square().sum()))
    return float((before * after).sum()) / rank if rank else 0.0


def mixing(matrix: torch.Tensor) -> torch.Tensor:
    """R of `matrix` = Q R, (..., n, n) for the shorter side n: how the columns of the longer side's basis are mixed.

    The other half of the paper's section 3. A wide matrix is transposed first. The diagonal is made not negative, so
    that R is unique where the rank is full; it does not change when Q is turned.
    """
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    r = torch.linalg.qr(tall, mode="r").R
    return torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r)[..., None] * r


def similarity(before: torch.Tensor, after: torch.Tensor) -> float:
    """1 where two matrices agree, 0 where they are opposite: 1 - ‖before - after‖ / (‖before‖ + ‖after‖), Frobenius.

    Of two that have nothing in common and are as large, 0.29. The authors compare R by its Euclidean distance and give
    no formula; by this one scale counts too.
    """
    size = float(before.norm() + after.norm())
    return 1.0 - float((before - after).norm()) / size if size else 1.0
