"""Finding the config of an adapter in a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import WRITTEN, OIALRConfig


def shared_fields(config: OIALRConfig | None) -> dict[str, Any]:
    """The fields that must be the same on all processes, as errors name them."""
    fields = {} if config is None else config.to_dict()
    return {  # a set is written in another order by every process
        f"OIALRConfig.{field}": sorted(value) if isinstance(value, set) else value
        for field, value in fields.items()
        if field not in WRITTEN
    }


def config_of(model: nn.Module, adapter: str) -> OIALRConfig:
    """The adapter's config, held by the model or by the part of it that has the adapter (sentence-transformers)."""
    for module in model.modules():
        config = (getattr(module, "peft_config", None) or {}).get(adapter)
        if isinstance(config, OIALRConfig):
            return config
    raise TypeError(f"{type(model).__name__} has OIALR layers, but no OIALRConfig of the adapter {adapter!r}.")
