"""Layers whose weights are integers or packed, and the numbers that these stand for."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer holds integer or packed weights. Told by class too: 4-bit storage can have a float dtype."""
    if hasattr(layer, "qweight") or hasattr(layer, "W_q"):
        return True
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_complex():
        return False
    plain = type(weight) in (torch.Tensor, nn.Parameter) and type(weight.data) is torch.Tensor
    return not plain or not weight.dtype.is_floating_point or weight.element_size() < 2


def can_be_read(layer: nn.Module) -> bool:
    """Whether `plain_weight` can read a quantised layer: a linear one of bitsandbytes or torchao."""
    cls = type(getattr(layer, "weight", None))
    return isinstance(layer, nn.Linear) and (
        cls.__module__.startswith("torchao.") or cls.__name__ in ("Params4bit", "Int8Params")
    )


def weight_bytes(weight: torch.Tensor) -> int:
    """What a weight holds in memory; of one that is made of several tensors, as torchao's, all of them."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    return weight.nbytes if flatten is None else sum(getattr(weight, name).nbytes for name in flatten()[0])


def plain_weight(layer: nn.Module) -> torch.Tensor:
    """The weight of a layer as floating-point numbers: its own, or what bitsandbytes or torchao make of theirs."""
    weight = cast(torch.Tensor, layer.weight)
    if not is_quantised(layer):
        return weight
    if type(weight).__name__ == "Int8Params":  # PEFT's way moves the weight there and back, and on a CPU loses scales
        held: Any = weight
        scales = cast(Any, layer).state.SCB if held.SCB is None else held.SCB
        return held.data.float() * (scales / 127).unsqueeze(1)
    from peft.utils.integrations import dequantize_module_weight  # on first use: few models are quantised

    return cast(Any, dequantize_module_weight)(layer).detach()
