"""What is saved beside the factors: with `train_rest` all the rest, with any adapter the running statistics."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..compat.peft_ import AuxiliaryTrainingWrapper
from ..compat.torch_ import BatchNorm
from ..layer import OIALRLayer
from ..units import beginnings
from ..weights import SLOTS


PEFT_PREFIX = "base_model.model."
PARTS = tuple(slot.name for slot in SLOTS)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def wrapped(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the state-dict keys that PEFT's own wrappers own: `modules_to_save`, trainable tokens."""
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))


def rest_keys(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The state-dict keys of everything that no adapter and no `modules_to_save` wrapper owns.

    Biases of factored layers belong to the rest; their base weights do not, since the adapter replaces them.
    """
    owned = set(wrapped(model))
    layers = {f"{name}." for name, module in model.named_modules() if isinstance(module, OIALRLayer)}

    def is_owned(key: str) -> bool:
        starts = beginnings(key)
        inside = (key[len(start) :] for start in starts if start in layers)
        return not owned.isdisjoint(starts) or any(rest.startswith((*PARTS, "base_layer.weight")) for rest in inside)

    return [key for key in keys if not is_owned(key)]


def running_statistics(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The state-dict keys of what BatchNorm gathers in every forward of training, with an adapter or without."""
    owned, norms = (
        wrapped(model),
        [name for name, module in model.named_modules() if isinstance(module, BatchNorm)],
    )
    names = {f"{name}.{statistic}" for name in norms for statistic in _STATISTICS}
    return [key for key in keys if key in names and not key.startswith(owned)]


def embedding_keys(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The state-dict keys of the embeddings that PEFT saves with any adapter, if resized or asked to."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None) for end in ("input", "output")]
    try:
        found = {id(module) for end in ends if (module := end()) is not None}
    except (NotImplementedError, AttributeError):  # a model of transformers without embeddings
        return []
    names = tuple(f"{name}." for name, module in model.named_modules() if id(module) in found)
    return [key for key in keys if key.startswith(names)]


def cut_to_live(state_dict: dict[str, torch.Tensor], name: str, adapter: str, rank: int) -> None:
    """Leave the zeros of cut ranks out of what is saved of a layer, where FSDP kept the shapes."""
    live, everything = slice(rank), slice(None)
    blocks = {"oialr_u": (everything, live), "oialr_sigma": (live, live), "oialr_vh": (live, everything)}
    for part, block in blocks.items():
        key = next(key for key in state_dict if f".{key}".endswith(f".{name}.{part}.{adapter}"))
        state_dict[key] = state_dict[key][(..., *block)].contiguous()
