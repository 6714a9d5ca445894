"""PEFT's LoRA on a two-factor layer, under the name of the layer that it stands for."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from .modules import Factored


def lora_layer(target: Any, adapter_name: str, config: LoraConfig, *args: Any, **kwargs: Any) -> LoraFactored | None:
    """The LoRA layer around `target` where that is two linear layers in a row; None for any other.

    Raises:
        ValueError: a variant of LoRA that starts from the dense weight, or trains its parts (DoRA, PiSSA, OLoRA ...).
    """
    if not isinstance(target, Factored) or not isinstance(target.down, nn.Linear):
        return None
    if config.use_dora or config.init_lora_weights not in (True, False, "gaussian", "orthogonal"):
        asked = "use_dora=True" if config.use_dora else f"init_lora_weights={config.init_lora_weights!r}"
        raise ValueError(
            f"LoRA with `{asked}` works on the dense weight of a layer, which a compressed model does not hold. Take "
            "plain LoRA, or put the adapter on `model.dequantize()`."
        )
    return LoraFactored(target, adapter_name, config, *args, **kwargs)


class LoraFactored(LoraLinear):
    """y = up(down(x)) + scaling · B A x. It is saved and loaded, switched and deleted as on the dense layer."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.down.in_features, module.up.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: the sum of two factors and a LoRA has a higher rank than the two factors.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A LoRA adapter cannot be merged into a compressed layer: the sum has a higher rank than its two factors. "
            "Serve the adapter beside it, or put it on `model.dequantize()` and merge there."
        )
