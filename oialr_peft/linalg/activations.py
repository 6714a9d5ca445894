"""A cut that changes least of what a layer gives on data that was seen; the plain one changes least of its weight."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .rotation import LinAlgError, Rotation, rotate


RIDGE = 0.01  # of a mean direction's energy, given to all: what no sample shows is ordered by the weight alone


class Activations(NamedTuple):
    """What was seen to go through a core (rows, cols), or several: the second moment of one of its two sides.

    `moment` (size, size): the sum of a aᵀ over samples a, which have the coordinates of the core's `side`. `inputs`
    says whether they went in there, or came out.
    """

    moment: torch.Tensor
    side: str  # "left" or "right"
    inputs: bool

    @property
    def flipped(self) -> Activations:
        """The same, of the transposed core."""
        return self._replace(side="left" if self.side == "right" else "right")


def second_moment(samples: torch.Tensor) -> torch.Tensor:
    """The sum of a aᵀ over samples a (..., size), in float32 or better."""
    rows = samples.reshape(-1, samples.shape[-1])
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.mT @ rows


def cut_by_activations(core: torch.Tensor, rank: int, seen: Activations) -> tuple[Rotation, float] | None:
    """The singular bases of the matrix of `rank` whose outputs are nearest to those of `core` on what was seen.

    With y = core x and samples x of the second moment C, || (core - P Pᵀ core) C^½ || is least for the `rank` leading
    left singular vectors P of core C^½, which are the leading directions of the outputs (Wang et al. 2024, SVD-LLM).
    What is kept is P Pᵀ core, decomposed as ever. Also the share of the outputs' energy that goes. None where this
    cannot be had; the plain cut is there then.
    """
    if seen.inputs == (seen.side == "left"):  # y = coreᵀ x: the same for the transposed matrix
        turned = cut_by_activations(core.mT, rank, seen.flipped)
        return None if turned is None else (turned[0].transposed(), turned[1])
    work = core.detach().to(seen.moment.dtype)
    if not bool(torch.isfinite(seen.moment).all()):
        return None
    try:
        directions = _of_inputs(work, seen.moment) if seen.inputs else _of_outputs(work, seen.moment)
    except LinAlgError:
        return None
    if directions is None or (within := rotate(directions[..., :rank].mT @ work)) is None:
        return None
    kept = directions[..., :rank]
    energy, whole = _energy(kept.mT, work, seen), _energy(None, work, seen)
    dropped = max(0.0, 1 - energy / whole) if whole else 0.0
    return Rotation(kept @ within.left, within.singular_values, within.right), dropped


def _of_inputs(core: torch.Tensor, moment: torch.Tensor) -> torch.Tensor | None:
    """The directions of outputs, leading ones first, from the moment of the inputs (cols, cols)."""
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    values, vectors = torch.linalg.eigh(_ridged(moment, identity))
    found = rotate(core @ (vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)))
    return None if found is None else found.left


def _of_outputs(core: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """The same from the moment of the outputs themselves (rows, rows)."""
    return torch.linalg.eigh(_ridged(moment, core @ core.mT)).eigenvectors.flip(-1)


def _energy(directions: torch.Tensor | None, core: torch.Tensor, seen: Activations) -> float:
    """Of the outputs on what was seen, along some directions (count, rows) or in all."""
    if seen.inputs:
        core = core if directions is None else directions @ core
        return float((core @ seen.moment * core).sum())
    moment = seen.moment if directions is None else directions @ seen.moment @ directions.mT
    return float(moment.diagonal(dim1=-2, dim2=-1).sum())


def _ridged(moment: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """The moment with a little of the one that inputs without any preference would have; that alone if it is zero."""
    energy, of_plain = (m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for m in (moment, plain))
    share = RIDGE * energy / of_plain.clamp_min(torch.finfo(plain.dtype).tiny)
    return moment + torch.where(energy > 0, share, torch.ones_like(share)) * plain
