"""W - W0 as a LoRA adapter, for servers that know nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft import save_as_lora as peft_save_as_lora
from safetensors.torch import load_file

from ..config import OIALRConfig
from ..layer import OIALRLayer, adapted_weights, oialr_layers
from ..linalg import full_precision


def save_as_lora(model: PeftModel, path: str | os.PathLike, rank: int | float) -> dict[str, float]:
    """Write the active adapter as a LoRA adapter of the base model; returns what is lost, layer by layer.

    The change of every weight, W - W0, is cut to its `rank` largest singular values (a float is the share of them that
    is kept, as in PEFT's function of this name, which does the work). OIALR changes weights at every rank and cuts W,
    not W - W0, so a small `rank` may lose much: look at the result before serving the file.

    Returns:
        {layer: Frobenius norm of what is lost, relative to that of W}.

    Raises:
        ValueError: `train_rest`, whose changes LoRA cannot hold, or a rank above a layer's.
        TypeError: a layer that has no LoRA form: convolutions, attention taken apart, freed base weights.
    """
    config = cast(OIALRConfig, model.active_peft_config)
    if config.train_rest:
        raise ValueError(
            "With `train_rest` weights outside the layers changed too, which a LoRA adapter cannot hold. Use "
            "`save_compressed`, or `merge_and_unload()` and save the dense model."
        )
    layers, adapter = oialr_layers(model), cast(str, model.active_adapter)
    for name, layer in layers.items():
        if not layer.supports_lora_conversion(adapter):
            raise TypeError(f"'{name}' has no LoRA form: {_why(layer, adapter)}")
    device = next(iter(adapted_weights(model).values())).core.device
    with full_precision(device):
        peft_save_as_lora(path, model, rank=rank, adapter_name=adapter)
        return _losses(model, layers, Path(path))


def _losses(model: PeftModel, layers: Mapping[str, OIALRLayer], path: Path) -> dict[str, float]:
    """What the LoRA adapter in a folder lacks of each layer."""
    saved = load_file(path / "adapter_model.safetensors")
    losses = {}
    for name, adapted in adapted_weights(model).items():
        weight, layer = adapted.dense(torch.float32), layers[name]
        delta = layer.get_delta_weight(adapted.adapter)
        a, b = (saved[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
        product = layer.kind.pair_product(layer.get_base_layer(), a, b)
        losses[name] = float(torch.linalg.norm(delta - product) / torch.linalg.norm(weight))
    return losses


def _why(layer: OIALRLayer, adapter: str) -> str:
    """Why a layer has no LoRA form, and the way out."""
    if adapter not in layer.weights:
        return f"it belongs to another adapter than the active '{adapter}'. Load '{adapter}' on a model of its own."
    instead = "`save_compressed`, or `merge_and_unload()` and save the dense model"
    if layer.in_attention:
        return f"it is a part of an attention that was taken apart, whose name LoRA does not know. Use {instead}."
    if not layer.kind.takes_lora:
        return f"it is a layer of the kind {layer.kind.name}, which PEFT cannot write as LoRA. Use {instead}."
    return (
        "its base weight W0 was freed (`delay`, or `keep_base_weights=False`), and LoRA holds W - W0. Save the "
        "adapter and load it on the base model with `keep_base_weights=True` in its config "
        f"(`PeftModel.from_pretrained(base, path, config=config)`), or use {instead}."
    )
