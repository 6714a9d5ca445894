"""The methods: each prepares a copy of the pretrained model, of which then trains what requires a gradient.

Matched to LoRA of rank 4 on the same layers. OIALR's residual mode three times: with as many trainable parameters and,
as bases are not saved, a file of the same size; with bases in a file of the same size (a fortieth of the parameters);
with a tenth of the parameters and of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import AdaLoraConfig, LoraConfig, OSFConfig, PsoftConfig, get_peft_model
from torch import nn

from oialr_peft import OIALRConfig


LORA = 4
FILE = 7  # the largest rank whose two bases in float16 and sigma are no larger than LoRA's two factors in float32


@dataclass(frozen=True)
class Layers:
    """The layers that are adapted: their names' ends, their shapes, the modules beside them that train whole."""

    targets: list[str]
    heads: list[str]
    share: float  # of the model's size that its compressed form is to have
    shapes: list[tuple[int, int]]

    @property
    def each(self) -> float:
        """Trainable parameters of LoRA, the mean over the layers."""
        return LORA * sum(map(sum, self.shapes)) / len(self.shapes)

    def within(self, rank: float) -> int:
        """The next whole rank that the layers have."""
        return min(round(rank), *map(min, self.shapes))


Make = Callable[[Any, Layers, int], tuple[nn.Module, int]]  # (model, layers, steps) to what trains, and its rank


def layers_of(model: nn.Module, task: Any) -> Layers:
    found = [module for name, module in model.named_modules() if name.split(".")[-1] in task.targets]
    return Layers(task.targets, task.heads, task.share, [tuple(module.weight.shape) for module in found])  # type: ignore[misc]


def _full(model: nn.Module, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    return model, 0


def _head(model: nn.Module, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.split(".")[0] in layers.heads
    return model, 0


def _lora(**settings: Any) -> Make:
    def make(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
        return _peft(model, layers, LoraConfig(r=LORA, lora_alpha=2 * LORA, **settings)), LORA

    return make


def _adalora(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    """Starts at one and a half times the rank and ends at it, the authors' way."""
    first = LORA * 3 // 2
    phases: dict[str, Any] = {"tinit": steps // 10, "tfinal": steps // 3, "total_step": steps}
    return _peft(model, layers, AdaLoraConfig(init_r=first, target_r=LORA, lora_alpha=2 * first, **phases)), LORA


def _osf(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    """All but the last directions of each layer are kept as they are."""
    keep = min(map(min, layers.shapes)) - LORA
    return _peft(model, layers, OSFConfig(effective_rank=keep)), LORA


def _psoft(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    """An orthogonal matrix has half the values of a square, and two vectors scale it."""
    rank = layers.within((2 * layers.each + 2.25) ** 0.5 - 1.5)  # r (r + 3) / 2 values
    return _peft(model, layers, PsoftConfig(r=rank, psoft_alpha=rank)), rank


def _residual(share: float, save_bases: bool) -> Make:
    def make(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
        rank = layers.within((share * layers.each) ** 0.5) if share else FILE
        return _peft(model, layers, OIALRConfig(residual=True, r=rank, save_bases=save_bases)), rank

    return make


def _defaults(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
    return _peft(model, layers, OIALRConfig()), 0


def _target_size(**fields: Any) -> Make:
    def make(model: Any, layers: Layers, steps: int) -> tuple[nn.Module, int]:
        return _peft(model, layers, OIALRConfig(target_size=layers.share, **fields)), 0

    return make


def _peft(model: Any, layers: Layers, config: Any) -> nn.Module:
    config.target_modules, config.modules_to_save = set(layers.targets), layers.heads or None
    return get_peft_model(model, config)


METHODS: dict[str, Make] = {
    "from scratch": _full,
    "head alone": _head,
    "full": _full,
    "LoRA": _lora(),
    "rsLoRA": _lora(use_rslora=True),
    "PiSSA": _lora(init_lora_weights="pissa"),
    "DoRA": _lora(use_dora=True),
    "AdaLoRA": _adalora,
    "OSF": _osf,
    "PSOFT": _psoft,
    "OIALR residual, parameters of LoRA": _residual(1.0, False),
    "OIALR residual, file of LoRA": _residual(0.0, True),
    "OIALR residual, a tenth of LoRA's parameters": _residual(0.1, False),
    "OIALR, defaults": _defaults,
    "OIALR, target_size": _target_size(),
    "OIALR, target_size, sigma alone": _target_size(bases="frozen"),
}
