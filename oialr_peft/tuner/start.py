"""The weight that an adapter starts with."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config import OIALRConfig
from ..linalg import Factors, Rotation, decompose, working_dtype
from ..weights import VH, U, form_of
from .rules import initial_rank


class Start(NamedTuple):
    """`factors`, their relative `error` where they were computed, and whether they only await those of a file."""

    factors: Factors
    error: float | None = None
    awaits_file: bool = False


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
        return Start(Factors(tensors.get(U), tensors[form.core], tensors.get(VH)), awaits_file=True)
    if config.delay or config.ranks is not None:
        # The base weight itself where it would be freed, else a copy.
        return Start(Factors(None, base if config.frees_base else base.detach().clone(), None))
    matrix = base.reshape(matrix_shape)
    rotation = decompose(matrix, initial_rank(name, min(matrix_shape[-2:]), config), config.init)
    return factored_start(name, matrix, rotation, config)


def factored_start(name: str, matrix: torch.Tensor, rotation: Rotation | None, config: OIALRConfig) -> Start:
    """The factored weight of a new adapter from the decomposition of its matrix.

    Raises:
        RuntimeError: there is none.
    """
    if rotation is None:
        raise RuntimeError(f"The SVD of '{name}' {tuple(matrix.shape)} did not converge with any driver.")
    from ..policy import Bases

    factors = rotation.factorise(working_dtype(matrix.dtype), Bases(config.bases).held(tuple(matrix.shape), 0))
    return Start(factors if config.init_weights else _disturbed(factors), factors.error(matrix))


def _disturbed(factors: Factors) -> Factors:
    core = factors.core
    return factors._replace(core=core + torch.randn_like(core) * core.max() / core.shape[-1] ** 0.5)
