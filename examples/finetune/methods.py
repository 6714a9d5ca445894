"""The methods: each prepares a copy of the pretrained model, of which then trains what requires a gradient.

Matched to LoRA of rank 4 on the same layers: by trainable parameters and, as bases are not saved, by file (r=45); by
the file where bases are saved (r=7, a fortieth of the parameters); with a tenth of the parameters and of the file
(r=14).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig


TARGETS = ["qkv", "out", "up", "down"]


def _full(model: nn.Module, rank: int) -> nn.Module:
    return model


def _lora(**settings: Any) -> Callable[[Any, int], nn.Module]:
    def make(model: Any, rank: int) -> nn.Module:
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS, **settings))

    return make


def _residual(save_bases: bool) -> Callable[[Any, int], nn.Module]:
    def make(model: Any, rank: int) -> nn.Module:
        rank = min(rank, model.positions.weight.shape[1])  # of the tiny model of tests
        config = OIALRConfig(residual=True, r=rank, save_bases=save_bases, target_modules=TARGETS)
        return get_peft_model(model, config)

    return make


METHODS: dict[str, tuple[Callable[[Any, int], nn.Module], int]] = {  # and the rank
    "full": (_full, 0),
    "LoRA": (_lora(), 4),
    "rsLoRA": (_lora(use_rslora=True), 4),
    "PiSSA": (_lora(init_lora_weights="pissa"), 4),
    "DoRA": (_lora(use_dora=True), 4),
    "OIALR residual, parameters of LoRA": (_residual(False), 45),
    "OIALR residual, file of LoRA": (_residual(True), 7),
    "OIALR residual, a tenth of LoRA's parameters": (_residual(False), 14),
}
