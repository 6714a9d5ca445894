"""What a trained model holds on disk, dense or small, and what of it trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from oialr_peft import save_compressed


def values_of(model: nn.Module) -> int:
    """How many values the state of a model has."""
    return sum(tensor.numel() for tensor in model.state_dict().values())


def trained_values(model: nn.Module) -> int:
    """How many values train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def size_of(model: Any, dense_values: int) -> dict[str, float]:
    """What the file of the small model holds, in bytes and as a share of the dense values, and what trains."""
    with tempfile.TemporaryDirectory() as folder:
        save_compressed(model, folder) if hasattr(model, "peft_config") else model.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, framework="pt") as held:
            values = sum(held.get_tensor(name).numel() for name in held.keys())
        size = {"bytes": file.stat().st_size, "held": values, "held_share": values / dense_values}
    return {**size, "trained": trained_values(model), "trained_share": trained_values(model) / dense_values}
