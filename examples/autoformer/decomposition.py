"""Autoformer's moving average as matrix products: the same function as transformers' layer, faster on a CPU.

Average pooling over time needs the time axis last, hence two copies of every state, and its backward pass on the CPU
visits each window. Padding by repeated end values and averaging is linear in the series: one (length, length) matrix.
It is zero outside a band, so each block of its rows meets a short piece of the series only; at length 768 that takes
a sixth of the whole product's time.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.autoformer.modeling_autoformer import AutoformerSeriesDecompositionLayer


ROWS = 64  # of a block: as fast as 32 and 48 at the published window of 25, from 96 on slower
Blocks = list[tuple[slice, Tensor]]


def averaging_matrix(length: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns (length, length): row t averages the odd `window` of steps around t, the end values repeated outside."""
    steps = torch.arange(length, device=device)[:, None] + torch.arange(window, device=device) - window // 2
    ones = torch.full(steps.shape, 1 / window, dtype=dtype, device=device)
    return torch.zeros(length, length, dtype=dtype, device=device).scatter_add_(1, steps.clamp(0, length - 1), ones)


def cut(matrix: Tensor) -> Blocks:
    """Returns for every block of rows the columns that it uses and their weights."""
    blocks = []
    for rows in matrix.split(ROWS):
        used = rows.any(dim=0).nonzero()
        columns = slice(int(used.min()), int(used.max()) + 1)
        blocks.append((columns, rows[:, columns].contiguous()))
    return blocks


@lru_cache(maxsize=16)
def averaging_blocks(length: int, window: int, dtype: torch.dtype, device: torch.device) -> tuple[Blocks, Blocks]:
    """Returns the blocks of the averaging matrix and of its transpose, which the gradient needs."""
    matrix = averaging_matrix(length, window, dtype, device)
    return cut(matrix), cut(matrix.T)


def _product(blocks: Blocks, x: Tensor) -> Tensor:
    x = x.to(blocks[0][1].dtype)  # under autocast gradients come in its dtype
    return torch.cat([weights @ x[:, columns] for columns, weights in blocks], dim=1)


class MovingAverage(torch.autograd.Function):
    """Differentiable in `x` (batch, time, channels); autograd's own rule would fill a whole gradient per block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int) -> Tensor:
        blocks, ctx.transposed = averaging_blocks(x.shape[1], window, x.dtype, x.device)
        return _product(blocks, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _product(ctx.transposed, grad), None


class MatrixDecomposition(AutoformerSeriesDecompositionLayer):
    """Splits (batch, time, channels) into its seasonal part and its trend, the moving average."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trend = MovingAverage.apply(x, self.kernel_size)
        return x - trend, trend


def speed_up_decomposition(model: nn.Module) -> int:
    """Turns every decomposition layer of `model` into the faster one, in place; returns how many were turned."""
    layers = [module for module in model.modules() if isinstance(module, AutoformerSeriesDecompositionLayer)]
    for module in layers:
        module.__class__ = MatrixDecomposition
    return len(layers)
