"""Products as exact as their dtype says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, products are computed in the dtype of their factors, whatever the loop around has switched on.

    Autocast would round their factors to eight bits, TF32 to eleven: a weight that is merged would be another, bases
    would not stay orthonormal. That is wanted in a forward, not where weights are made of weights.
    """
    matmul: Any = torch.backends.cuda.matmul
    switch, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, switch)
    rounds = before in ("tf32", True)
    if rounds:
        setattr(matmul, switch, exact)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if rounds:
            setattr(matmul, switch, before)
