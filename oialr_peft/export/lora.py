"""W - W0 as a LoRA adapter, for servers that know nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft import save_as_lora as peft_save_as_lora
from safetensors.torch import load_file

from ..config import OIALRConfig
from ..layer import adapted_weights, oialr_layers


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
    peft_save_as_lora(path, model, rank=rank, adapter_name=cast(str, model.active_adapter))
    saved = load_file(Path(path) / "adapter_model.safetensors")
    losses = {}
    layers = oialr_layers(model)
    for name, adapted in adapted_weights(model).items():
        weight, layer = adapted.dense(torch.float32), layers[name]
        delta = layer.get_delta_weight(adapted.adapter)
        a, b = (saved[f"base_model.model.{name}.lora_{side}.weight"].float() for side in "AB")
        product = layer.kind.pair_product(layer.get_base_layer(), a, b)
        losses[name] = float(torch.linalg.norm(delta - product) / torch.linalg.norm(weight))
    return losses
