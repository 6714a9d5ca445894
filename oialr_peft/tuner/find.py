"""Finding the config of an adapter in a model."""

from __future__ import annotations

from torch import nn

from ..config import OIALRConfig


def config_of(model: nn.Module, adapter: str) -> OIALRConfig:
    """The adapter's config, held by the model or by the part of it that has the adapter (sentence-transformers)."""
    for module in model.modules():
        config = (getattr(module, "peft_config", None) or {}).get(adapter)
        if isinstance(config, OIALRConfig):
            return config
    raise TypeError(f"{type(model).__name__} has OIALR layers, but no OIALRConfig of the adapter {adapter!r}.")
