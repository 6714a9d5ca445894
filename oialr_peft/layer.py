"""The layer that PEFT sees: it puts an adapted weight in the place of the weight of a plain layer."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .base_weight import BaseWeight
from .compat.peft_ import check_adapters_to_merge
from .compat.torch_ import plain_name
from .kinds import Kind, is_quantised
from .weights import FROZEN, SLOTS, TRAINED, AdaptedWeight, make_room
from .workers.sharding import is_sharded


class OIALRLayer(BaseWeight, BaseTunerLayer, nn.Module):
    """A plain layer whose weight OIALR adapters replace. What a kind of layer does is in kinds/, what a weight is in
    weights/; here PEFT's calls find their way there.

    Attributes:
        weights: {adapter: its AdaptedWeight}.
        kind: of the plain layer.
        weight_shape, matrix_shape: of its weight as it stores it, and as a matrix or several.
        in_attention: whether it is a projection of an nn.MultiheadAttention that was taken apart.
        is_read: whether the model computes with its weight beside calling it; `weight` then is the adapter's.
    """

    adapter_layer_names: tuple[str, ...] = TRAINED
    other_param_names: tuple[str, ...] = FROZEN

    def __init__(self, base_layer: nn.Module, kind: Kind) -> None:
        nn.Module.__init__(self)
        self.base_layer = base_layer
        for slot in SLOTS:
            setattr(self, slot.name, slot.store())
        self.kind = kind
        self.weights: dict[str, AdaptedWeight] = {}
        self.matrix_shape = kind.matrix_shape(base_layer)
        self.weight_shape = tuple(self.matrix_shape if is_quantised(base_layer) else self.base_weight.shape)  # packed
        self.in_attention = self.is_read = False
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def __getattr__(self, name: str) -> Any:
        """What models read of a layer that they call, such as a convolution's stride, comes from the layer itself."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("_"):  # what is private, such as Accelerate's hook, is its own
                raise
            return getattr(self.base_layer, name)

    @property
    def weight(self) -> torch.Tensor:
        """The adapter's where the model computes with it, else that of the base layer, as PEFT's layers tell it."""
        names = [name for name in self.active_adapters if name in self.weights]
        if not self.is_read or self.merged or self.disable_adapters or not names:
            return self.base_weight
        weights = self._together(names)
        products = [weight.factors.compose().reshape(weight.shape) for weight in weights]
        if weights[0].base is None:
            return products[0].to(self.base_weight.dtype)
        base = self.plain_base()
        return (base + sum(products)).to(base.dtype)

    @property
    def in_features(self) -> int:
        """The features or channels that go in, as PEFT's layers tell it."""
        return self.kind.features(self.get_base_layer())[0]

    @property
    def out_features(self) -> int:
        return self.kind.features(self.get_base_layer())[1]

    # -- life of an adapter ------------------------------------------------------------------------------------

    def add_weight(self, adapter: str, *, residual: bool, **facts: Any) -> None:
        """Give an adapter its weight: in the place of the base weight or, if that is a `residual`, beside it."""
        stores = {slot.name: getattr(self, slot.name) for slot in SLOTS}
        base = self.plain_base if residual else None
        weight = AdaptedWeight(adapter, stores, self.weight_shape, self.matrix_shape, base=base, **facts)
        self.weights[adapter] = weight

    def delete_adapter(self, adapter_name: str) -> None:
        if weight := self.weights.get(adapter_name):
            self.check_base(f"deleting the adapter {adapter_name!r}")
            if weight.watch is not None:
                weight.watch.end()
            del self.weights[adapter_name]
        super().delete_adapter(adapter_name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Loading calls this once the tensors are filled. Their dtype stays: a detour over bf16 would round them."""
        if weight := self.weights.get(adapter_name):
            weight.to(device=device or self.base_weight.device)

    def lower_dtype(self, adapter: str) -> None:
        """Hold the adapter in the dtype of the base weight, for `autocast_adapter_dtype=False`."""
        weight, dtype = self.weights[adapter], self.base_weight.dtype
        if weight.base is None:
            weight.to(device=self.base_weight.device, dtype=dtype)
        elif dtype.is_floating_point:  # else packed; the bases are held in a short one anyway
            weight.core.data = weight.core.data.to(dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Take ranks from the shapes that come in, before the dicts below are filled from the same state dict."""
        for weight in self.weights.values():
            if not is_sharded(weight.core):
                make_room(weight, state_dict, prefix)
        if self.base_is_freed and not self.merged:
            # Savers that drop tensors sharing memory (Accelerate's save_state) take all empty weights for one.
            state_dict.setdefault(f"{prefix}base_layer.weight", self.base_weight.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def enable_adapters(self, enabled: bool) -> None:
        if not enabled:
            self.check_base("disabling the adapter")
        super().enable_adapters(enabled)

    # -- forward -----------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base layer, in the dtype of x; under autocast in autocast's dtype."""
        names = [name for name in self.active_adapters if name in self.weights]
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or not names:
            self.check_base("running the layer without an adapter")
            return self.base_layer(x, *args, **kwargs)
        weights = self._together(names)
        if weights[0].base is None:
            y = self._product(x, weights[0], getattr(self.get_base_layer(), "bias", None), *args)
            if weights[0].observer is not None:
                y = weights[0].observer(self.kind, self.get_base_layer(), x, y, args)
            kept = x.is_floating_point() and torch.is_autocast_enabled(x.device.type) and y.dtype != torch.float64
            return y if kept else y.to(x.dtype if x.is_floating_point() else self.base_weight.dtype)
        y = self.base_layer(x, *args, **kwargs)
        for weight in weights:
            y = y + self._product(x, weight, None, *args).to(y.dtype)
        return y

    def _product(self, x: torch.Tensor, weight: AdaptedWeight, bias: torch.Tensor | None, *args: Any) -> torch.Tensor:
        """The product with core and bases, in the core's dtype or autocast's."""
        weight.check_filled()
        self.check_place(weight.core, x)
        factors, base, dtype = weight.factors, self.get_base_layer(), weight.core.dtype
        if torch.is_autocast_enabled(x.device.type) and dtype != torch.float64:
            if not weight.is_factored:  # by autocast itself, which keeps one cast weight for several calls
                return self.kind.multiply(base, x, factors, bias, *args)
            dtype = torch.get_autocast_dtype(x.device.type)
        # Always cast: autocast does not reach into the backward of our own functions.
        bias = None if bias is None else bias.to(dtype)
        factors, x = factors._replace(core=factors.core.to(dtype)), x.to(dtype) if x.is_floating_point() else x
        return self.kind.multiply(base, x, factors, bias, *args)

    def _together(self, names: list[str]) -> list[AdaptedWeight]:
        """The weights of these adapters, of which several may act together only where each adds to the base."""
        weights = [self.weights[name] for name in names]
        if len(weights) > 1 and any(weight.base is None for weight in weights):
            raise ValueError(
                "An OIALR adapter replaces the weight of a layer, so one can be active or merged at a time; got "
                f"{names}. Choose one with `set_adapter`; `unmerge_adapter` takes back a merged one. Those of "
                "OIALRConfig(residual=True) add up."
            )
        return weights

    # -- merging -----------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapter's weight in the place of the base weight, which is kept aside for `unmerge`.

        Raises:
            ValueError: another adapter is merged that does not add to the base, the base is quantised, or `safe_merge`
                and the merged weight is not finite; the base weight is then unchanged.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.weights]
        if not names:
            return
        weights = self._together([*self.merged_adapters, *names])
        if is_quantised(self.get_base_layer()):
            raise ValueError(
                f"The weight of this {type(self.get_base_layer()).__name__} is quantised and cannot take the change "
                f"of adapter {names[0]!r}. Load the model in float32 or bfloat16 with the adapter, and merge there."
            )
        wide = torch.promote_types(self.base_weight.dtype, torch.float32)  # in which several are added
        merged = weights[0].dense(self.base_weight.dtype if len(weights) == 1 else wide)
        for weight in weights[1:]:
            merged = merged + weight.change(wide)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise ValueError(f"NaNs detected in the merged weights. The adapter {names[0]} seems to be broken.")
        if self._unmerged_weight is None:
            self._unmerged_weight = self.base_weight.data
        self.base_weight.data = merged.to(self.base_weight.dtype)
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Put the base weight back, bit for bit; where and in the dtype in which the model is now."""
        if self._unmerged_weight is not None:
            self.base_weight.data = self._unmerged_weight.to(self.base_weight)
        self._unmerged_weight = None
        self.merged_adapters.clear()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can write W - W0 as LoRA: W0 must be there, under a name that the base model knows."""
        return self.kind.takes_lora and adapter_name in self.weights and not (self.in_attention or self.base_is_freed)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """W - W0 in float32, in the shape of the stored weight."""
        weight = self.weights[adapter]
        if weight.base is not None:
            return weight.change(torch.float32)
        return weight.dense(torch.float32) - self.plain_base().detach().float()

    def _get_name(self) -> str:
        return f"oialr.{self.kind.name}"


def name_in_base(name: str) -> str:
    """The name that a module has in the base model, from the one that it has under PEFT, DDP or torch.compile."""
    return plain_name(name).removeprefix("module.").removeprefix("base_model.model.")


def oialr_layers(model: nn.Module) -> dict[str, OIALRLayer]:
    """The OIALR layers of a model in its order, by their names in the base model."""
    return {name_in_base(name): module for name, module in model.named_modules() if isinstance(module, OIALRLayer)}


def weights_of(model: nn.Module, adapter: str) -> dict[str, AdaptedWeight]:
    """The weights of one adapter, by the names of their layers, in the order of the model."""
    return {name: layer.weights[adapter] for name, layer in oialr_layers(model).items() if adapter in layer.weights}


def adapted_weights(model: nn.Module) -> dict[str, AdaptedWeight]:
    """As `weights_of`, of the OIALR adapter that is active."""
    return {
        name: layer.weights[adapter]
        for name, layer in oialr_layers(model).items()
        for adapter in layer.active_adapters
        if adapter in layer.weights
    }
