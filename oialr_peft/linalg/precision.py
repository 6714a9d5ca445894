"""Products as exact as their dtype says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
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
    matmul: Any = torch.backends.cuda.matmul
    put: Callable[[str], None]
    try:
        before, exact, put = torch.get_float32_matmul_precision(), "highest", torch.set_float32_matmul_precision
    except RuntimeError:  # they disagree already, since the newer one was used
        before, exact, put = matmul.fp32_precision, "ieee", partial(setattr, matmul, "fp32_precision")
    if before == exact:
        yield
        return
    put(exact)
    try:
        yield
    finally:
        put(before)
