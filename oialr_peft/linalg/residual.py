"""The leading directions of a weight, between which its change trains (residual mode).

They are made so that any machine that has the weight finds the same ones: decomposed in float64, signs fixed, and
rounded to float16 only then. The change is left @ core @ right with whatever bases are held, so rounding them costs
nothing; it halves what an adapter holds and saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .draw import draw
from .factors import Factors, working_dtype
from .rotation import decompose


HELD = torch.float16
TOLERANCE = 1e-4  # of fingerprints, whose numbers are around 1; another base, or its cast to bfloat16, is 2e-3 off
_SEED = 13


class Directions(NamedTuple):
    """`left` (rows, rank) and `right` (rank, cols) as they are held, the largest singular value, a `fingerprint`."""

    left: torch.Tensor
    right: torch.Tensor
    largest: float
    fingerprint: list[float]

    def start(self, dtype: torch.dtype, noise: float = 0.0) -> Factors:
        """The change that a new adapter starts with: none, or `noise` as a share of the largest singular value."""
        rank = self.left.shape[-1]
        core = self.left.new_zeros((*self.left.shape[:-2], rank, rank), dtype=working_dtype(dtype))
        return Factors(self.left, core + noise * self.largest * torch.randn_like(core) if noise else core, self.right)


def leading_directions(matrix: torch.Tensor, rank: int, method: str) -> Directions | None:
    """The `rank` leading directions of a weight (rows, cols), or several; None where it cannot be decomposed.

    On the CPU where the weight's device has no float64.
    """
    work = matrix.detach().to("cpu" if matrix.device.type == "mps" else matrix.device, torch.float64)
    if (rotation := decompose(work, rank, method)) is None:
        return None
    along = _draw(rotation.right.shape[:-1], 0, work)  # a sign by the largest entry would flip where two are close
    signs = torch.where(along.unsqueeze(-2) @ rotation.right < 0, -1.0, 1.0)
    left, right = ((basis * signs).to(matrix.device, HELD) for basis in (rotation.left, rotation.right))
    left, right = left.contiguous(), right.mT.contiguous()
    return Directions(left, right, float(rotation.singular_values.max()), [_probe(work), *probe_bases(left, right)])


def probe_bases(left: torch.Tensor, right: torch.Tensor) -> list[float]:
    """Two numbers that tell these bases from others, also from their own with another sign."""
    return [_probe(basis.detach().to(torch.float64)) for basis in (left, right)]


def same(fingerprint: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two fingerprints are of the same weight and bases, up to rounding."""
    return len(fingerprint) == len(other) and all(
        abs(a - b) <= TOLERANCE for a, b in zip(fingerprint, other, strict=True)
    )


def _probe(matrix: torch.Tensor) -> float:
    """A random bilinear form of a matrix, relative to its size."""
    rows, cols = (_draw((*matrix.shape[:-2], size), seed, matrix) for seed, size in enumerate(matrix.shape[-2:], 1))
    size = torch.linalg.vector_norm(matrix).clamp_min(torch.finfo(matrix.dtype).tiny)
    return round(float((rows.unsqueeze(-2) @ (matrix / size) @ cols.unsqueeze(-1)).sum()), 6)


def _draw(shape: Sequence[int], seed: int, like: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_SEED + seed)
    return draw(generator, *shape, dtype=torch.float64).to(like.device)
