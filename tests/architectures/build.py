"""Tiny models of transformers' architectures, built from configs alone: no download, the same in all processes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers

from .table import INPUTS, ROWS, TINY


def build(name: str) -> tuple[transformers.PreTrainedModel, dict[str, torch.Tensor]]:
    """The model of a row of the table in eval, and a batch for it; the same weights and values at every call."""
    row, cls = ROWS.get(name, {}), getattr(transformers, name)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = cls(tiny_config(cls.config_class, row.get("config", {})))
    for parameter in model.parameters():  # some start at zero, and nothing would show
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval(), inputs_of(model, row.get("inputs", {}))


def tiny_config(cls: Any, overrides: dict[str, Any]) -> Any:
    """A config of this class in which every size that `TINY` knows is tiny; `overrides` come last."""
    defaults = cls().to_dict()
    sizes = {name: size for name, size in TINY.items() if not isinstance(defaults.get(name, []), list)}
    sizes |= overrides
    for name, sub in (getattr(cls, "sub_configs", None) or {}).items():
        if sub is not transformers.AutoConfig:
            sizes[name] = tiny_config(sub, overrides.get(name, {})).to_dict()
    return cls(**sizes)


def inputs_of(model: Any, shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A batch of two: of what the model's `main_input_name` says, or as the row says it."""
    main = model.main_input_name
    shapes = {main: INPUTS.get(main), **shapes}
    if model.config.is_encoder_decoder and main in ("input_ids", "input_features", "input_values", "pixel_values"):
        shapes.setdefault("decoder_input_ids", (2, 6))
    generator = torch.Generator().manual_seed(1)
    return {name: _values(name, shape, generator) for name, shape in shapes.items() if shape is not None}


def _values(name: str, shape: Any, generator: torch.Generator) -> torch.Tensor:
    if isinstance(shape, list):
        return torch.tensor(shape)
    if "ids" in name:
        return torch.randint(5, 40, shape, generator=generator)
    if "mask" in name:
        return torch.ones(shape, dtype=torch.long)
    return torch.randn(shape, generator=generator)
