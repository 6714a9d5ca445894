"""Tensors added up over the processes, of which some may lack some."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from .group import Workers


Key = TypeVar("Key", bound=Hashable)


def totals(
    workers: Workers, own: Mapping[Key, torch.Tensor], device_of: Callable[[Key], torch.device]
) -> dict[Key, torch.Tensor]:
    """The sum of every tensor that any process has; the same on all, to the bit.

    A process that lacks one counts as zeros on `device_of` its key. A collective call; one process keeps its own.
    """
    if workers.group is None:
        return dict(own)
    everyone: list[Any] = [None] * workers.size
    dist.all_gather_object(everyone, {key: (t.shape, t.dtype) for key, t in own.items()}, group=workers.group)
    forms: dict[Key, tuple[torch.Size, torch.dtype]] = {key: form for each in everyone for key, form in each.items()}
    found, handles = {}, []
    for key, (shape, dtype) in forms.items():
        mine = own[key].contiguous() if key in own else torch.zeros(shape, dtype=dtype, device=device_of(key))
        handles.append(dist.all_reduce(mine, group=workers.group, async_op=True))
        found[key] = mine
    for handle in handles:
        handle.wait()
    return found
