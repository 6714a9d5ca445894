"""How far a basis turned, told from a few numbers, so that nobody has to keep the earlier weight."""

from __future__ import annotations

import torch

from .draw import draw
from .rotation import Rotation


PROBES = 32  # on either side: 1 - stability is told to about a tenth of itself
_SEED = 2401_08505  # not a seed that weights are drawn with: probes that are a weight's own start tell wrong


def sketch(rotation: Rotation) -> torch.Tensor:
    """What the polar factor U Vᵀ of a matrix, or of several, does between fixed random vectors; (PROBES, PROBES).

    On the mean over the vectors the squared difference of two sketches is that of the factors.
    """
    generator = torch.Generator().manual_seed(_SEED)
    left, right = (
        basis.mT @ draw(generator, *basis.shape[:-1], PROBES).to(basis) for basis in (rotation.left, rotation.right)
    )
    seen = left.mT @ right
    return seen.reshape(-1, PROBES, PROBES).sum(0).to("cpu", torch.float32)


def sketched_stability(before: torch.Tensor, after: torch.Tensor, rank: int) -> float:
    """`stability` of two polar factors of one rank (of all matrices together), from their sketches.

    |Q₁ - Q₂|² = 2 rank - 2 trace(Q₁ᵀ Q₂), and the left side is what sketches tell.
    """
    return 1 - float((before - after).double().square().mean()) / (2 * rank)
