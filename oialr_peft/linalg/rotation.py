"""The rotation of a basis by an SVD. It never changes the weight; only a cut does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch

from .change import BasisChange, Transport
from .draw import draw
from .factors import Factors, reorthonormalise, working_dtype
from .precision import full_precision


INIT_SEED = 2401  # of the randomised initialisation; fixed so that it repeats anywhere
LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class Rotation:
    """matrix (rows, cols) = `left` @ diag(`singular_values`) @ `right`ᵀ, singular values in descending order.

    `left` (rows, rank) and `right` (cols, rank) have orthonormal columns. The matrix is either a dense weight (then
    `left` and `right` become the bases) or the sigma of a factored layer (then they rotate its bases). Whatever lives
    in the coordinates of the matrix, optimizer moments above all, moves with the same two matrices. With a leading
    dimension it is several matrices at once, cut to the same rank.
    """

    left: torch.Tensor
    singular_values: torch.Tensor
    right: torch.Tensor

    def cut(self, rank: int) -> Rotation:
        """Keep the `rank` largest singular values."""
        return Rotation(self.left[..., :rank], self.singular_values[..., :rank], self.right[..., :rank])

    def transposed(self) -> Rotation:
        """That of the transposed matrix."""
        return Rotation(self.right, self.singular_values, self.left)

    def to(self, device: torch.device) -> Rotation:
        """All three factors on a device."""
        return Rotation(self.left.to(device), self.singular_values.to(device), self.right.to(device))

    @property
    def rank(self) -> int:
        return self.singular_values.shape[-1]

    @property
    def transport(self) -> Transport:
        """Where what lives in the coordinates of the matrix goes, if both bases turn."""
        return Transport(self.left, self.right)

    def dropped_energy(self, matrix: torch.Tensor) -> float:
        """The share of the squared Frobenius norm of `matrix`, whose rotation this is, that a cut leaves out.

        In float64: the squares of weights near 1e-30 underflow in float32. 0 where the matrix is zero.
        """
        whole = float(torch.linalg.vector_norm(matrix.detach(), dtype=torch.float64))
        kept = float(torch.linalg.vector_norm(self.singular_values, dtype=torch.float64))
        return max(0.0, 1 - (kept / whole) ** 2) if whole else 0.0

    def sensitivities(self, squares: torch.Tensor) -> torch.Tensor:
        """How much the loss feels each singular value: the value times the size of the gradient along its direction.

        `squares` (rows, cols): the mean squared gradient of each entry of the matrix, the entries taken to vary
        independently. Half the square of what is returned is the change of the loss without that direction, to second
        order and with the Fisher information for the Hessian (LeCun et al. 1990).
        """
        along = self.left.square().mT @ squares.to(self.left.dtype) * self.right.square().mT
        return self.singular_values * along.sum(-1).sqrt()

    def change(self, held: Factors, bases: tuple[bool, bool] = (True, True)) -> BasisChange:
        """The way of a weight, whose core this is the decomposition of, into its singular bases.

        left ← left @ self.left, right ← self.rightᵀ @ right, where an absent one is the identity. `bases` says which
        of them the weight holds from then on: with both the core is diagonal, with one the other is part of the core.

        Raises:
            ValueError: a basis that is held would be dissolved into the core, whose moments know nothing outside it.
        """
        if (held.left is not None and not bases[0]) or (held.right is not None and not bases[1]):
            raise ValueError("A basis that is held cannot become part of the core again.")
        left, right = self.left, self.right.mT
        if held.left is not None:
            left = reorthonormalise(held.left.to(left.dtype) @ left)
        if held.right is not None:
            right = reorthonormalise(held.right.to(left.dtype).mT @ self.right).mT
        if all(bases):
            core = torch.diag_embed(self.singular_values)
        elif bases[1]:
            core = left * self.singular_values.unsqueeze(-2)
        else:
            core = self.singular_values.unsqueeze(-1) * right
        factors = _stored(Factors(left if bases[0] else None, core, right if bases[1] else None), held.core.dtype)
        return BasisChange(factors, Transport(self.left if bases[0] else None, self.right if bases[1] else None))

    def factorise(self, dtype: torch.dtype, bases: tuple[bool, bool] = (True, True)) -> Factors:
        """The factors of the matrix that was decomposed, contiguous and in `dtype`."""
        return self.change(Factors(None, self.left.new_empty(0, dtype=dtype), None), bases).factors


def rotate(matrix: torch.Tensor) -> Rotation | None:
    """SVD of a matrix in float32 (float64 for float64), or None where it cannot be had.

    None means: leave this layer as it is until the next update. That is the case for non-finite entries and where the
    default LAPACK driver, cuSOLVER's gesvd (on CUDA) and float64 on the CPU all fail to converge.
    """
    if matrix.shape[-2] < matrix.shape[-1]:  # LAPACK takes a wide matrix up to four times as long as its transpose
        turned = rotate(matrix.mT)
        return None if turned is None else turned.transposed()
    work = matrix.detach().to(working_dtype(matrix.dtype))
    if not bool(torch.isfinite(work).all()):
        return None
    for svd in (_svd_default, _svd_gesvd, _svd_float64_cpu):
        try:
            u, s, vh = svd(work)
        except LinAlgError:
            continue
        if bool(torch.isfinite(s).all()):
            return Rotation(u.to(work), s.to(work), vh.to(work).mT)
    return None


def decompose(matrix: torch.Tensor, rank: int, method: str) -> Rotation | None:
    """The `rank` leading singular triplets of a dense weight, by the method that `OIALRConfig.init` names."""
    with full_precision(matrix.device):
        rotation = rotate_lowrank(matrix, rank, seed=INIT_SEED) if method == "lowrank" else rotate(matrix)
    return None if rotation is None else rotation.cut(rank)


def spectrum(matrix: torch.Tensor, rank: int, method: str) -> torch.Tensor | None:
    """The singular values that `decompose` would find, without the bases, or None where they cannot be had."""
    work = matrix.detach().to(working_dtype(matrix.dtype))
    if method == "svd" and bool(torch.isfinite(work).all()):
        try:
            return torch.linalg.svdvals(work)[..., :rank]
        except LinAlgError:  # decompose has more ways
            pass
    rotation = decompose(matrix, rank, method)
    return None if rotation is None else rotation.singular_values


def rotate_lowrank(matrix: torch.Tensor, rank: int, *, seed: int, iterations: int = 4) -> Rotation | None:
    """The `rank` leading singular triplets by a randomised range finder (Halko et al. 2011, algorithm 4.4).

    Draws from a generator of its own, so the global random state is not touched and the result repeats. Worth it when
    `rank` is far below min(rows, cols); else the exact `rotate` is used.
    """
    width = rank + 8
    if 4 * width > min(matrix.shape[-2:]):
        return decompose(matrix, rank, "svd")
    work = matrix.detach().to(working_dtype(matrix.dtype))
    if not bool(torch.isfinite(work).all()):
        return None
    generator = torch.Generator().manual_seed(seed)
    sketch = draw(generator, work.shape[-1], width, dtype=work.dtype).to(work.device)
    basis = torch.linalg.qr(work @ sketch).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(work @ torch.linalg.qr(work.mT @ basis).Q).Q
    small = rotate(basis.mT @ work)
    return None if small is None else Rotation(basis @ small.left, small.singular_values, small.right).cut(rank)


def _stored(factors: Factors, dtype: torch.dtype) -> Factors:
    # Contiguous copies: a slice kept alive would pin the uncut matrix in memory and in the saved file.
    left, core, right = (
        None if part is None else part.to(dtype).clone(memory_format=torch.contiguous_format) for part in factors
    )
    return Factors(left, cast(torch.Tensor, core), right)


def _svd_default(matrix: torch.Tensor):
    return torch.linalg.svd(matrix, full_matrices=False)


def _svd_gesvd(matrix: torch.Tensor):
    if not matrix.is_cuda:
        raise LinAlgError("gesvd can be chosen on CUDA only")
    return torch.linalg.svd(matrix, full_matrices=False, driver="gesvd")


def _svd_float64_cpu(matrix: torch.Tensor):
    return torch.linalg.svd(matrix.to("cpu", torch.float64), full_matrices=False)
