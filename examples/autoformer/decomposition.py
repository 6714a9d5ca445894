"""Autoformer's moving average as one matrix product: the same function as transformers' layer, faster on a CPU.

Average pooling over time needs the time axis last, hence two copies of every state, and its backward pass on the CPU
visits each window. Padding by repeated end values and averaging is linear in the series: one (length, length) matrix.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers.models.autoformer.modeling_autoformer import AutoformerSeriesDecompositionLayer


@lru_cache(maxsize=16)
def averaging_matrix(length: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns (length, length): row t averages the odd `window` of steps around t, the end values repeated outside."""
    steps = torch.arange(length, device=device)[:, None] + torch.arange(window, device=device) - window // 2
    ones = torch.full(steps.shape, 1 / window, dtype=dtype, device=device)
    return torch.zeros(length, length, dtype=dtype, device=device).scatter_add_(1, steps.clamp(0, length - 1), ones)


class MatrixDecomposition(AutoformerSeriesDecompositionLayer):
    """Splits (batch, time, channels) into its seasonal part and its trend, the moving average."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trend = averaging_matrix(x.shape[1], self.kernel_size, x.dtype, x.device) @ x
        return x - trend, trend


def speed_up_decomposition(model: nn.Module) -> int:
    """Turns every decomposition layer of `model` into the faster one, in place; returns how many were turned."""
    layers = [module for module in model.modules() if isinstance(module, AutoformerSeriesDecompositionLayer)]
    for module in layers:
        module.__class__ = MatrixDecomposition
    return len(layers)
