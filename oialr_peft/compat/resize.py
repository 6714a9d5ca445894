"""A Parameter that changes its shape and stays itself."""

from __future__ import annotations

import torch
from torch import nn


def resize_parameter(parameter: nn.Parameter, data: torch.Tensor) -> None:
    """Give `parameter` the values and the shape of `data` in place; its gradient is dropped.

    A new Parameter would have to be made known to the optimizer, to DDP and to whoever else holds the old one, and
    where that is forgotten it stops training without a word. The same object with new data is known everywhere.

    Autograd caches a gradient accumulator that remembers the old shape for as long as any old graph is alive (a loss
    still bound to a variable in the training loop is enough). Assigning data of another dtype is the documented event
    that makes `set_data` drop that cache, hence the detour.
    """
    parameter.grad = None
    if parameter.shape != data.shape:
        detour = torch.bfloat16 if data.dtype == torch.float16 else torch.float16
        parameter.data = torch.empty(0, dtype=detour, device=data.device)
    parameter.data = data.detach()
