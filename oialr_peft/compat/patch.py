"""Replacing a function of another library, once, for the whole process."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType


def patch(owner: type | ModuleType, name: str, hook: Callable) -> None:
    """Have `owner.name` call `hook(original, ...)`, where `original` is the function that stood there before.

    Once, however often it is asked for. A name that the library no longer has is passed over, so that what needs no
    patch goes on; a test of each tells.
    """
    found = inspect.getattr_static(owner, name, None)
    original = found.__func__ if isinstance(found, classmethod) else found
    if original is None or is_patched(owner, name):
        return

    @functools.wraps(original)
    def replacement(*args, **kwargs):
        return hook(original, *args, **kwargs)

    replacement.oialr_patch = True  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(replacement) if isinstance(found, classmethod) else replacement)


def is_patched(owner: type | ModuleType, name: str) -> bool:
    """Whether `patch` has replaced this function."""
    return hasattr(getattr(owner, name, None), "oialr_patch")
