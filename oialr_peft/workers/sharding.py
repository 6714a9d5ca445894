"""Parameters that FSDP2 has spread over the processes. Their shapes stay; what is live is their top-left block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, DTensor)


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with all its parts, on every process; a collective call where it is sharded."""
    return cast(Any, tensor).full_tensor() if isinstance(tensor, DTensor) else tensor


def fsdp_modules(model: nn.Module) -> Sequence[FSDPModule]:
    """The modules of a model that `fully_shard` was called on, with their shards back in their places.

    A forward without gradients leaves the root's parameters unsharded, as if the model never had been sharded.
    """
    found = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in found:
        module.reshard()
    return found


def set_block(tensor: torch.Tensor, block: torch.Tensor) -> None:
    """Make `tensor` zero but for its top-left block in the last dimensions, in place; sharded or not."""
    full = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    full[tuple(slice(0, n) for n in block.shape)] = block.to(tensor.dtype)
    with torch.no_grad():
        if isinstance(tensor, DTensor):
            full = distribute_tensor(full, tensor.device_mesh, tensor.placements)
        tensor.copy_(full)
