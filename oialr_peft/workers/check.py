"""The check mode: what the processes hold is compared after every update."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """A short hash of the shapes and bytes of tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
