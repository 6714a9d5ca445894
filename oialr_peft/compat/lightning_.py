"""Lightning Fabric's wrapper of a model, seen in Lightning 2.6."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that `fabric.setup` wrapped; any other model itself.

    The wrapper shows the state dict of the model inside as its own, while its modules have other names.
    """
    return model.module if type(model).__name__ == "_FabricModule" else model  # type: ignore[return-value]
