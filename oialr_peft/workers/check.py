"""The check mode: what the processes hold is compared after every update."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from .sharding import full_tensor


if TYPE_CHECKING:
    from ..weights import AdaptedWeight


def digests(weights: Mapping[str, AdaptedWeight], optimizer: Any, step: int) -> dict[str, Any]:
    """What the layers hold after an update, moments included, for comparison between processes."""
    found, where = {}, f"after the update at step {step}"
    for name, weight in weights.items():
        factors = [factor for factor in weight.full_factors if factor is not None]
        state = optimizer.state.get(weight.core) or {}
        moments = [full_tensor(value) for _, value in sorted(state.items()) if isinstance(value, torch.Tensor)]
        found[f"'{name}' {where}"] = {"rank": weight.rank, "factors": digest(factors)}
        found[f"the moments of '{name}' {where}"] = digest(moments)
    return found


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """A short hash of the shapes and bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
