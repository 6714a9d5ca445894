"""What a saved adapter holds, checked before anything in the live model moves; which checkpoint is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .config import OIALRConfig
from .layer import OIALRLayer
from .linalg import factor_shapes
from .weights import AdaptedWeight


PEFT_PREFIX = "base_model.model."
_PARTS = ("oialr_u", "oialr_sigma", "oialr_vh", "oialr_weight")


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest checkpoint of a Trainer run that was written to its end, or None.

    For `trainer.train(resume_from_checkpoint=...)` after a crash: a process that is killed while it saves leaves a
    newer, half-written one, which `resume_from_checkpoint=True` would take. The Trainer writes trainer_state.json
    last.
    """
    folders = sorted(Path(output_dir).glob("checkpoint-[0-9]*"), key=lambda p: int(p.name[11:]), reverse=True)
    for folder in folders:
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        return str(folder)
    return None


def rest_keys(model: nn.Module, keys: Mapping[str, object]) -> list[str]:
    """The state-dict keys of everything that no adapter and no `modules_to_save` wrapper owns.

    Biases of factored layers belong to the rest; their base weights do not, since the adapter replaces them.
    """
    owned = set()
    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            owned.add(f"{name}.")
        elif isinstance(module, OIALRLayer):
            owned.update(f"{name}.{part}" for part in (*_PARTS, "base_layer.weight"))
    return [key for key in keys if not key.startswith(tuple(owned))] if owned else list(keys)


def cut_to_live(state_dict: dict[str, torch.Tensor], name: str, adapter: str, rank: int) -> None:
    """Leave the zeros of cut ranks out of what is saved of a layer, where FSDP kept the shapes."""
    live, everything = slice(rank), slice(None)
    blocks = {"oialr_u": (everything, live), "oialr_sigma": (live, live), "oialr_vh": (live, everything)}
    for part, block in blocks.items():
        key = next(key for key in state_dict if key.endswith(f"{name}.{part}.{adapter}"))
        state_dict[key] = state_dict[key][(..., *block)].contiguous()


def file_ranks(state_dict: Mapping[str, torch.Tensor], layers: Mapping[str, AdaptedWeight]) -> dict[str, int | None]:
    """{layer name: rank in the file, None where the file holds a dense weight}, taken from tensor shapes.

    Raises:
        ValueError: a tensor is missing, empty, or of a shape that cannot belong to the layer.
    """
    tensors = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in state_dict.items()}
    ranks: dict[str, int | None] = {}
    for name, layer in layers.items():
        weight = tensors.get(f"{name}.oialr_weight")
        if weight is not None:
            _check_shape(f"{name}.oialr_weight", weight, layer.shape)
            ranks[name] = None
            continue
        if missing := [part for part in _PARTS[:3] if f"{name}.{part}" not in tensors]:
            raise ValueError(
                f"The adapter file lacks the tensor '{name}.{missing[0]}'. It is incomplete or belongs to another "
                "model; the model is unchanged."
            )
        sigma = tensors[f"{name}.oialr_sigma"]
        rank = sigma.shape[-1] if sigma.ndim else 0
        if not 1 <= rank <= layer.full_rank:
            raise ValueError(
                f"Tensor '{name}.oialr_sigma' of the adapter file has shape {tuple(sigma.shape)}; it must be square "
                f"with a rank of 1 to min(out, in) = {layer.full_rank}. The model is unchanged."
            )
        for part, shape in zip(_PARTS[:3], factor_shapes(layer.matrix_shape, rank), strict=True):
            _check_shape(f"{name}.{part}", tensors[f"{name}.{part}"], shape)
        ranks[name] = rank
    return ranks


def check_file(
    model: nn.Module, config: OIALRConfig, state_dict: Mapping[str, torch.Tensor], layers: Mapping[str, AdaptedWeight]
) -> None:
    """Refuse a file with tensors of unknown layers, or without the rest that `train_rest` saves.

    Raises:
        ValueError: naming the first tensor; the model is unchanged.
    """
    known = {f"{name}.{part}" for name in layers for part in _PARTS}
    tensors = {key.removeprefix(PEFT_PREFIX) for key in state_dict}
    unknown = sorted(key for key in tensors if key.rpartition(".")[2] in _PARTS and key not in known)
    if unknown:
        raise ValueError(
            f"The adapter file has {len(unknown)} tensors of layers that this adapter lacks, first '{unknown[0]}'. It "
            "belongs to another model or other `target_modules`; the model is unchanged."
        )
    if not config.train_rest:
        return
    live = model.state_dict()
    rest = {key.removeprefix(PEFT_PREFIX): tuple(live[key].shape) for key in rest_keys(model, live)}
    for key, tensor in state_dict.items():
        if (name := key.removeprefix(PEFT_PREFIX)) in rest:
            _check_shape(name, tensor, rest[name])
    if missing := sorted(rest.keys() - tensors):
        raise ValueError(
            f"The adapter was trained with `train_rest`, but its file lacks {len(missing)} tensors of the rest, first "
            f"'{missing[0]}'. It is incomplete or belongs to another model; the model is unchanged."
        )


def _check_shape(key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"Tensor '{key}' of the adapter file has shape {tuple(tensor.shape)}, expected {shape}. The "
            "file is damaged or belongs to another model; the model is unchanged."
        )
