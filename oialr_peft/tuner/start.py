"""The weight that an adapter starts with."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..compat.transformers_ import without_mark
from ..config import OIALRConfig
from ..linalg import HELD, Directions, Factors, Rotation, decompose, leading_directions, working_dtype
from ..weights import VH, U, form_of
from .rules import initial_rank


class Start(NamedTuple):
    """`factors`, their relative `error` where they were computed, whether they only await those of a file, and the
    `fingerprint` of a residual weight and its bases."""

    factors: Factors
    error: float | None = None
    awaits_file: bool = False
    fingerprint: list[float] | None = None

    def as_weight(self) -> dict[str, Any]:
        """What an `AdaptedWeight` takes of it."""
        return {"factors": self.factors, "awaits_file": self.awaits_file, "fingerprint": self.fingerprint}


def starting_weight(name: str, base: torch.Tensor, matrix_shape: tuple[int, ...], config: OIALRConfig) -> Start:
    """The weight of a new adapter on the layer `name`: that of its `base` weight, dense or factored.

    With `config.ranks` (a saved adapter) it is a placeholder of the saved rank.

    Raises:
        RuntimeError: the weight could not be decomposed.
    """
    rank = None if config.ranks is None else config.ranks.get(name)
    dtype = working_dtype(base.dtype)
    if rank is not None:
        nan = torch.full((), float("nan"), dtype=dtype, device=base.device)
        form = form_of((config.one_sided or {}).get(name))
        tensors = {slot: nan.expand(shape).clone() for slot, shape in form.shapes(matrix_shape, rank).items()}
        if config.residual:
            tensors |= {slot: tensors[slot].to(HELD) for slot in form.bases}
        return Start(Factors(tensors.get(U), tensors[form.core], tensors.get(VH)), awaits_file=True)
    if config.delay or config.ranks is not None:
        # The base weight itself where it would be freed, else a copy.
        return Start(Factors(None, without_mark(base) if config.frees_base else base.detach().clone(), None))
    matrix, rank = base.reshape(matrix_shape), initial_rank(name, min(matrix_shape[-2:]), config)
    if config.residual:
        return residual_start(name, matrix, leading_directions(matrix, rank, config.init), config)
    return factored_start(name, matrix, decompose(matrix, rank, config.init), config)


def factored_start(name: str, matrix: torch.Tensor, rotation: Rotation | None, config: OIALRConfig) -> Start:
    """The factored weight of a new adapter from the decomposition of its matrix.

    Raises:
        RuntimeError: there is none.
    """
    if rotation is None:
        raise no_svd(name, matrix)
    from ..policy import Bases

    factors = rotation.factorise(working_dtype(matrix.dtype), Bases(config.bases).held(tuple(matrix.shape), 0))
    return Start(factors if config.init_weights else _disturbed(factors), factors.error(matrix))


def residual_start(name: str, matrix: torch.Tensor, found: Directions | None, config: OIALRConfig) -> Start:
    """The change of a weight that a new adapter starts with, from its leading directions; exact, for it is none.

    Raises:
        RuntimeError: they could not be had.
    """
    if found is None:
        raise no_svd(name, matrix)
    noise = 0.0 if config.init_weights else found.left.shape[-1] ** -0.5
    return Start(found.start(matrix.dtype, noise), error=0.0, fingerprint=found.fingerprint)


def no_svd(name: str, matrix: torch.Tensor) -> RuntimeError:
    """The error where a weight cannot be decomposed."""
    return RuntimeError(
        f"The SVD of '{name}' {tuple(matrix.shape)} did not converge with any driver, or its weight is not finite. "
        "Leave it out with `exclude_modules`."
    )


def _disturbed(factors: Factors) -> Factors:
    core = factors.core
    return factors._replace(core=core + torch.randn_like(core) * core.max() / core.shape[-1] ** 0.5)
