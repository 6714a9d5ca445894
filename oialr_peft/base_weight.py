"""The weight of the layer that is wrapped: whole, quantised, freed, or under a merged one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from .compat.torch_ import set_parameter
from .kinds import plain_weight


class BaseWeight:
    """What an OIALRLayer knows of its base; `merged` and `get_base_layer` are PEFT's."""

    _unmerged_weight: torch.Tensor | None = None
    rest_trains = False  # with an adapter, by `train_rest`, so that the model around the layer is not the base's

    @property
    def base_weight(self) -> nn.Parameter:
        """The weight of the layer that is wrapped; empty once it was freed."""
        return cast(nn.Parameter, cast(Any, self).get_base_layer().weight)

    @property
    def base_is_freed(self) -> bool:
        weight = self._unmerged_weight if cast(Any, self).merged else self.base_weight
        return weight is not None and weight.numel() == 0

    @property
    def is_replaced(self) -> bool:
        """Whether an adapter, and not the base layer, is what the model computes with."""
        me = cast(Any, self)
        active = [] if me.disable_adapters else [me.weights.get(name) for name in me.active_adapters]
        return self.base_is_freed or any(weight is not None and weight.base is None for weight in active)

    def plain_base(self) -> torch.Tensor:
        """The base weight without any adapter as floating-point numbers, made from those that are quantised."""
        kept = self._unmerged_weight
        return plain_weight(cast(Any, self).get_base_layer()) if kept is None else kept

    def free_base(self) -> None:
        """Give its memory back."""
        empty = self.base_weight.detach().new_empty(0)  # not None: adapters are moved to its device
        set_parameter(cast(Any, self).get_base_layer(), "weight", nn.Parameter(empty, requires_grad=False))

    def check_place(self, core: torch.Tensor, x: torch.Tensor) -> None:
        """Raise if the adapter's tensors were taken away, where multiplying with them can give any values at all."""
        if core.is_meta and not x.is_meta:
            raise RuntimeError(
                f"The adapter of this {type(cast(Any, self).get_base_layer()).__name__} is on the meta device: the "
                "model was offloaded after the adapter was made, which OIALR does not support. Keep layers with "
                "an adapter on a real device, or offload the model that `save_compressed` writes."
            )

    def check_base(self, action: str) -> None:
        """Raise if the base model, which `action` needs, is not there any more."""
        if self.rest_trains:
            raise RuntimeError(
                f"With `train_rest` the rest of the model was trained too, so {action} would not give the base model "
                "back. Load the base model again, or create the adapter with OIALRConfig(train_rest=False)."
            )
        if self.base_is_freed:
            raise RuntimeError(
                f"The dense base weight of this {type(cast(Any, self).get_base_layer()).__name__} was freed, so "
                f"{action} is impossible. Create the adapter with OIALRConfig(keep_base_weights=True) to keep it."
            )
