"""One run on pictures: a mini-ViT or a ResNet from random weights, dense or with OIALR."""

from __future__ import annotations

import time
from typing import Any

import torch
from peft import get_peft_model
from pictures import Split
from sizes import size_of, values_of
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from vit import accuracy, make_model, training

from oialr_peft import OIALRConfig


# The paper's mini-ViT and a ResNet of basic blocks, in its size and in two for a core of a CPU.
MODELS = {
    "vit": {"small": "small", "medium": "medium", "paper": "paper"},
    "resnet": {"small": (32, 64, 128), "medium": (64, 128, 256), "paper": (64, 128, 256, 512)},
}


def make(name: str, size: str) -> nn.Module:
    """An untrained model for ten classes of images of 32 by 32."""
    chosen: Any = MODELS[name][size]
    if name == "vit":
        return make_model(chosen)
    sizes: dict[str, Any] = {"embedding_size": chosen[0], "hidden_sizes": list(chosen), "depths": [2] * len(chosen)}
    sizes |= {"layer_type": "basic", "num_labels": 10}
    return ResNetForImageClassification(ResNetConfig(**sizes))


def train(
    plan: dict[str, Any], data: dict[str, Split], rate: float, seed: int, fields: dict[str, Any] | None
) -> dict[str, Any]:
    """AdamW with a warm-up and a cosine; `fields` of OIALRConfig, or None for dense. What a table needs."""
    torch.manual_seed(seed)
    model: Any = make(plan["model"], plan["size"]).to(plan["device"])
    values = values_of(model)
    if fields is not None:
        model = get_peft_model(model, OIALRConfig(train_rest=True, **fields))
    began = time.process_time()
    for _ in training(model, data["train"], rate, plan["steps"], plan["batch"], seed):
        pass
    found = {part: accuracy(model, data[part]) for part in ("validation", "test")}
    return {**found, **size_of(model, values), "seconds": round(time.process_time() - began, 1)}
