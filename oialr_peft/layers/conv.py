"""nn.Conv1d and nn.Conv2d, with any stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..svd import cheapest_order
from .base import OIALRLayer


class Conv(OIALRLayer):
    """A convolution whose kernel (out, in / groups, *window) is one matrix per group.

    With rows = out / groups and cols = in / groups * prod(window): u (rows, rank) @ sigma @ vh (rank, cols), with a
    leading dimension of size `groups` where there are several; they share one rank. The forward is a convolution with
    vh as its kernel and `rank` channels per group, then convolutions of window 1 with sigma and u.
    """

    pointwise: Callable[..., torch.Tensor]

    @staticmethod
    def matrix_shape_of(layer: nn.Module) -> tuple[int, ...]:
        conv = cast(nn.Conv2d, layer)
        rows, cols = conv.out_channels // conv.groups, math.prod(conv.weight.shape[1:])
        return (rows, cols) if conv.groups == 1 else (conv.groups, rows, cols)

    @property
    def in_features(self) -> int:
        """The channels that go in, under the name that PEFT's layers have for them."""
        return cast(nn.Conv2d, self.get_base_layer()).in_channels

    @property
    def out_features(self) -> int:
        return cast(nn.Conv2d, self.get_base_layer()).out_channels

    def _adapted(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        conv = cast(Any, self.get_base_layer())
        kernels = self._kernels(x, adapter) if self.is_factored(adapter) else [self.oialr_weight[adapter]]
        biases = [*(None for _ in kernels[1:]), None if conv.bias is None else conv.bias.to(x.dtype)]
        y = conv._conv_forward(x, kernels[0], biases[0])
        for kernel, bias in zip(kernels[1:], biases[1:], strict=True):
            y = type(self).pointwise(y, kernel, bias, groups=conv.groups)
        return y

    def _kernels(self, x: torch.Tensor, adapter: str) -> list[torch.Tensor]:
        """The kernels of the cheapest way through the factors; the first has the layer's window, the others 1."""
        u, sigma, vh = self.factors(adapter)
        conv = cast(nn.Conv2d, self.get_base_layer())
        positions = x.numel() // conv.in_channels // math.prod(conv.stride)
        order = cheapest_order(positions, vh.shape[-1], sigma.shape[-1], u.shape[-2])
        matrices = {
            "chain": [vh, sigma, u],
            "fold_left": [sigma @ vh, u],
            "fold_right": [vh, u @ sigma],
            "rebuild": [u @ sigma @ vh],
        }[order]
        window = self.weight_shape[1:]
        first, *others = (matrix.reshape(-1, matrix.shape[-1]) for matrix in matrices)
        ones = (1,) * (len(window) - 1)
        return [first.reshape(-1, *window), *(other.reshape(*other.shape, *ones) for other in others)]


class Conv1d(Conv):
    """nn.Conv1d; see `Conv`."""

    pointwise = staticmethod(F.conv1d)


class Conv2d(Conv):
    """nn.Conv2d; see `Conv`."""

    pointwise = staticmethod(F.conv2d)
