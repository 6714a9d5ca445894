"""A cut that changes least of what a layer does on data that was seen; the plain one changes least of its weight."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .factors import working_dtype
from .rotation import LinAlgError, Rotation, rotate


RIDGE = 0.03  # of a mean direction's energy, given to all: what no sample shows is ordered by the weight alone


class Seen(NamedTuple):
    """What was seen to go through a core (rows, cols), or several, in the coordinates of its `side`: second moments.

    `coming` (size, size): of what comes to the core there from outside, activations at the side of its inputs and
    gradients at that of its outputs. `made`: of what the core makes there of the other, gradients at the side of its
    inputs and activations at that of its outputs. None where it was not seen.
    """

    side: str  # "left" or "right"
    coming: torch.Tensor | None = None
    made: torch.Tensor | None = None

    @property
    def flipped(self) -> Seen:
        """The same, of the transposed core."""
        return self._replace(side="left" if self.side == "right" else "right")

    def with_more(self, other: Seen) -> Seen:
        """With what was seen of other samples."""
        return Seen(self.side, _sum(self.coming, other.coming), _sum(self.made, other.made))


def second_moment(samples: torch.Tensor) -> torch.Tensor:
    """The sum of a aᵀ over samples a (..., size), in float32 or better."""
    rows = samples.reshape(-1, samples.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.mT @ rows


def cut_by_activations(core: torch.Tensor, rank: int, seen: Seen) -> tuple[Rotation, float] | None:
    """The singular bases of a matrix of `rank` that does nearly what `core` does, and the share of that which goes.

    What a direction is worth is the energy of the activations along it times that of the gradients, as in balanced
    truncation (Moore 1981). With y = core x, inputs of the second moment C and output gradients of G, the error
    || G^½ (core - kept) C^½ || is least for kept = core P, where P projects onto the leading directions of C N and
    N = coreᵀ G core is the moment of the input gradients; where these were not seen, G is the identity and the outputs
    change least (Wang et al. 2024, SVD-LLM). The share is that of the squared error. The core of `kept` is decomposed
    as ever. None where this cannot be had; the plain cut is there then.
    """
    if seen.side == "left":  # coreᵀ takes gradients to gradients: the same for the transposed matrix
        turned = cut_by_activations(core.mT, rank, seen.flipped)
        return None if turned is None else (turned[0].transposed(), turned[1])
    if (balanced := _balanced(core, seen)) is None:
        return None
    work, coming, made, root, inverse, _, vectors = balanced
    leading = vectors[..., -rank:]
    projector = root @ leading @ (leading.mT @ inverse)
    if (rotation := rotate(work @ projector)) is None:
        return None
    lost = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device) - projector
    return rotation.cut(rank).to(core.device), _share(lost, coming, made)


def seen_spectrum(core: torch.Tensor, seen: Seen) -> torch.Tensor | None:
    """What each direction is worth that `cut_by_activations` would keep, descending, (size,) or (groups, size).

    Their squares are the eigenvalues of C N, of which a cut loses those that it leaves out: first-order estimates of a
    change of the loss, so they can be compared between layers and between groups, of which one that nothing went
    through is worth nothing. None where not both moments were seen, or they or the core are not finite, or all of the
    layer is worth nothing: then there is no telling.
    """
    core, seen = (core.mT, seen.flipped) if seen.side == "left" else (core, seen)
    known = all(_finite(moment, core) is not None for moment in (seen.coming, seen.made))
    if not known or (balanced := _balanced(core, seen)) is None:
        return None
    felt = (_energy(balanced.coming) > 0) & (_energy(balanced.made) > 0)  # a group of none has its ridge alone
    values = torch.where(felt, balanced.values.clamp_min(0), 0).sqrt().flip(-1)
    return values.to(core.device) if 0 < float(values.sum()) < math.inf else None


class _Balanced(NamedTuple):
    """A core, the moments of what was seen of it, and the eigenvectors of C½ N C½ with their values, ascending."""

    work: torch.Tensor
    coming: torch.Tensor
    made: torch.Tensor
    root: torch.Tensor
    inverse: torch.Tensor
    values: torch.Tensor
    vectors: torch.Tensor


def _balanced(core: torch.Tensor, seen: Seen) -> _Balanced | None:
    device = "cpu" if core.device.type == "mps" else core.device  # which had no eigh for long
    work = core.detach().to(device, working_dtype(core.dtype))
    identity, plain = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device), work.mT @ work
    coming, made = _finite(seen.coming, work), _finite(seen.made, work)
    if coming is None and made is None:
        return None
    coming, made = identity if coming is None else coming, plain if made is None else made
    try:
        root, inverse = _roots(_ridged(coming, identity))
        values, vectors = torch.linalg.eigh(root @ _ridged(made, plain) @ root)
    except LinAlgError:
        return None
    return _Balanced(work, coming, made, root, inverse, values, vectors)


def _share(lost: torch.Tensor, coming: torch.Tensor, made: torch.Tensor) -> float:
    """The squared error of leaving out what `lost` projects onto, as a share of all."""
    whole = float((coming * made).sum())
    return min(1.0, max(0.0, float((lost @ coming @ lost.mT * made).sum()) / whole)) if whole else 0.0


def _ridged(moment: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """The moment with a little of the one that it would have without preferences; that alone where it is zero."""
    energy, of_plain = _energy(moment).unsqueeze(-1), _energy(plain).unsqueeze(-1)
    share = RIDGE * energy / of_plain.clamp_min(torch.finfo(plain.dtype).tiny)
    return moment + torch.where(energy > 0, share, torch.ones_like(share)) * plain


def _energy(moment: torch.Tensor) -> torch.Tensor:
    """The sum over all directions, (..., 1)."""
    return moment.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)


def _roots(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square root of a positive matrix and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    roots = values.clamp_min(torch.finfo(values.dtype).eps * values[..., -1:]).sqrt().unsqueeze(-2)
    return vectors * roots @ vectors.mT, vectors / roots @ vectors.mT


def _finite(moment: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """None where an overflow, such as of scaled gradients in float16, has spoilt it, or it is of another rank."""
    if moment is None or moment.shape[-1] != like.shape[-1] or not bool(torch.isfinite(moment).all()):
        return None
    return moment.to(like)


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    """Without what an overflow has spoilt before, whose step is taken again, or was of another rank."""
    if one is None or other is None or one.shape != other.shape:
        return one if other is None else other
    return torch.where(torch.isfinite(one).all(), one, torch.zeros_like(one)) + other
