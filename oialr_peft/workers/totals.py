"""Tensors added up over the processes, of which some may lack some."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .group import Workers


Key = TypeVar("Key", bound=Hashable)


def totals(workers: Workers, own: Mapping[Key, torch.Tensor]) -> dict[Key, torch.Tensor]:
    """The sum of every tensor that any process has; the same on all, to the bit.

    A process that lacks one counts as zeros. A collective call of several processes.
    """
    workers.meet()
    devices = {tensor.device.type: tensor.device for tensor in own.values()}
    everyone: list[Any] = [None] * workers.size
    dist.all_gather_object(everyone, {key: (t.shape, t.dtype, t.device.type) for key, t in own.items()}, workers.group)
    forms: dict[Key, tuple[torch.Size, torch.dtype, str]] = {k: form for each in everyone for k, form in each.items()}
    found: dict[Key, torch.Tensor] = {}
    handles: list[Any] = []
    for key, (shape, dtype, kind) in forms.items():
        mine = own.get(key)
        found[key] = (
            torch.zeros(shape, dtype=dtype, device=devices.get(kind, kind)) if mine is None else mine.contiguous()
        )
        handles.append(dist.all_reduce(found[key], group=workers.group, async_op=True))
    for handle in handles:
        handle.wait()
    return found
