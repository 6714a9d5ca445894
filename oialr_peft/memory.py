"""Freed memory handed back to the system."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch


def release_memory() -> None:
    """Give freed memory back to the system, on the CPU under glibc and on CUDA; elsewhere nothing happens.

    An update makes every factor anew, and after a cut most buffers of a step have new sizes. Allocators keep the old
    ones for later, so without this a process would stay as large as it was at full rank. On the CPU it takes
    milliseconds.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (TypeError, OSError):  # Windows has no such handle
        return None
