"""Finding the OIALR layers of a model."""

from __future__ import annotations

from torch import nn

from .base import OIALRLayer


def oialr_layers(model: nn.Module) -> list[tuple[str, OIALRLayer]]:
    """The OIALR layers of a model in its order, named as in the base model."""
    return [
        (name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("base_model.model."), module)
        for name, module in model.named_modules()
        if isinstance(module, OIALRLayer)
    ]


def active_layers(model: nn.Module) -> list[tuple[str, OIALRLayer, str]]:
    """(name, layer, adapter) of the layers whose active adapter is an OIALR one."""
    return [
        (name, layer, adapter)
        for name, layer in oialr_layers(model)
        for adapter in layer.active_adapters
        if layer.holds(adapter)
    ]
