"""What is used of PEFT beyond its public surface. Seen in PEFT 0.21."""

from __future__ import annotations

from typing import Any

from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_adapters_to_merge


__all__ = ["BufferDict", "check_adapters_to_merge", "include_all_linear_layers", "is_excluded"]


def include_all_linear_layers(config: Any, model: Any) -> None:
    """Resolve `target_modules="all-linear"` in place, as PEFT's own tuners do; a new tuner has to ask for it."""
    _maybe_include_all_linear_layers(config, model)


def is_excluded(found: Any) -> bool:
    """Whether PEFT's check of a target says "excluded by name". It returns a false object of a private class."""
    return type(found).__name__ == "_ExcludedModule"
