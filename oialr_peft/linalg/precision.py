"""Products as exact as their dtype says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, products are computed in the dtype of their factors, whatever the loop around has switched on.

    Autocast would round the factors to eight bits, TF32 to eleven: a weight that is merged would be another, bases
    would not stay orthonormal. That is wanted in a forward, not where weights are made of weights.
    """
    autocast: Any = contextlib.nullcontext()
    if torch.amp.is_autocast_available(device.type):
        autocast = torch.autocast(device.type, enabled=False)
    with _exact_products(), autocast:
        yield


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """With the switch that the user took: torch refuses products where its two disagree."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # they disagree already, since the newer one was used
        matmul: Any = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before
        return
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
