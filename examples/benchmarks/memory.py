"""Bytes that a training step holds: kept for backward, of the optimizer, trainable."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def kept_for_backward(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the storages that autograd keeps from `forward` to backward, each once, without the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    alive: list[Tensor] = []  # or the address of a freed storage could come again

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())

    with torch.autograd.graph.saved_tensors_hooks(note, lambda _: None):  # type: ignore[arg-type]
        forward()
    return sum(kept.values())


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state; a projector's own tensor counts too."""
    return sum(_bytes(value) for state in optimizer.state.values() for value in state.values())


def parameter_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the model's tensors by whether they train."""
    tensors = [*model.parameters(), *model.buffers()]
    return {
        "trainable": sum(t.nbytes for t in tensors if t.requires_grad),
        "frozen": sum(t.nbytes for t in tensors if not t.requires_grad),
    }


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(_bytes(part) for part in vars(value).values()) if hasattr(value, "__dict__") else 0
