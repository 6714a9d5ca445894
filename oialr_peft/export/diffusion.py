"""Models and pipelines of diffusers written as compressed ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from transformers import PreTrainedModel

from ..files import Draft, file_hash
from ..layer import adapted_weights
from ..workers.saving import one_writer
from .compress import check_adapter, check_shapes, check_whole, compressed, parts
from .diffusers_quantizer import CompressedDiffusersQuantizer, DiffusersRecord
from .guard import METHOD
from .quantizer import shape_like


def save_diffusers(model: Any, folder: Path, written: Callable[[list[str]], None]) -> None:
    """Write a model or a whole pipeline; every part of a pipeline that has an OIALR adapter is compressed.

    Weights are written before the config that names their SHA-256, so what a kill leaves half replaced is refused.
    The process that writes calls `written` with the names of the files.

    Raises:
        TypeError: there is no OIALR adapter.
    """
    small = _small(model)  # by all processes, where they hold shards of it
    held = [part for part in getattr(model, "components", {"": model}).values() if isinstance(part, nn.Module)]
    with one_writer(nn.ModuleList(held)) as writes:
        if writes:
            written(_write(small, folder))


def _write(small: Any, folder: Path) -> list[str]:
    with Draft(folder) as draft:
        small.save_pretrained(draft.path)
        for config in draft.path.rglob("config.json"):
            _note_hashes(config)
        draft.prove()
        names = sorted(
            draft.files(), key=lambda name: (name.endswith("index.json"), name.endswith("config.json"), name)
        )
        with draft.alone():
            for name in names:
                draft.place(name)
    return names


def _small(model: Any) -> Any:
    if not isinstance(model, DiffusionPipeline):
        return _compressed(model)
    adapted = {
        name: part for name, part in model.components.items() if isinstance(part, nn.Module) and adapted_weights(part)
    }
    if not adapted:
        raise TypeError(f"No part of this {type(model).__name__} has an active OIALR adapter to compress.")
    whole = copy.copy(model)
    for name, part in adapted.items():
        part: Any = part.get_base_model() if hasattr(part, "get_base_model") else part  # type: ignore[operator]
        setattr(whole, name, compressed(part) if isinstance(part, PreTrainedModel) else _compressed(part))
    return whole


def _compressed(base: Any) -> Any:
    """As `compressed`, of a model of diffusers."""
    check_adapter(base)
    tensors, record = parts(base)
    config: Any = DiffusersRecord(record.layers, record.attention)
    with torch.device("meta"):
        model: Any = type(base).from_config(base.config)
    model = model.to(base.dtype)
    shape_like(model, config)
    check_shapes(model, tensors)
    model.load_state_dict(tensors, strict=False, assign=True)
    check_whole(model, tensors)
    model.register_to_config(quantization_config=config)
    model.hf_quantizer = CompressedDiffusersQuantizer(config)
    return model


def _note_hashes(config: Path) -> None:
    """Write the SHA-256 of the weights beside a compressed model's config into it."""
    read = json.loads(config.read_bytes())
    record = read.get("quantization_config") or {}
    if record.get("quant_method") == METHOD and "_diffusers_version" in read:
        record["files"] = {file.name: file_hash(file) for file in sorted(config.parent.glob("*.safetensors"))}
        config.write_text(json.dumps(read, indent=2, sort_keys=True) + "\n")
