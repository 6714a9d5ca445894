"""Saving what FSDP2 has spread over processes: all of them gather, one of them writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .group import Workers
from .sharding import full_tensor


_ALL_HERE = timedelta(minutes=2)  # processes that end a step together come to its save together


def gathered(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor with all its shards; a collective call if there are any.

    Raises:
        RuntimeError: other processes did not come.
    """
    workers = _workers(tensors.values(), "gather")
    if not workers.meet(patience=_ALL_HERE):
        raise RuntimeError(
            f"OIALR stops: FSDP2 spreads this model over {workers.size} processes, but not all came to save it "
            f"within {_ALL_HERE}. Call `save_pretrained` and `save_compressed` on all processes; of `save_pretrained` "
            "say which one writes: `is_main_process=torch.distributed.get_rank() == 0`."
        )
    return {name: full_tensor(tensor) for name, tensor in tensors.items()}


@contextmanager
def one_writer(model: nn.Module) -> Iterator[bool]:
    """Whether this process is to write; True where the model is not sharded.

    All processes leave together, and where writing failed all raise.
    """
    workers, error = _workers(model.parameters(), "write"), None
    try:
        yield workers.index == 0
    except Exception as failure:
        error = failure
    workers.meet(error)


def _workers(tensors: Iterable[torch.Tensor], purpose: str) -> Workers:
    for tensor in tensors:
        if isinstance(tensor, DTensor) and tensor.device_mesh.ndim == 1:
            return Workers(tensor.device_mesh.get_group(), purpose)
    return Workers()
