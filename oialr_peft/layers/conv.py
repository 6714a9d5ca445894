"""nn.Conv1d and nn.Conv2d, with any stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.grad import conv1d_input, conv2d_input

from ..linalg import Factors, rebuild
from .base import OIALRLayer
from .product import choose_order, plain_autograd_only


class Conv(OIALRLayer):
    """A convolution whose kernel (out, in / groups, *window) is one matrix per group.

    With rows = out / groups and cols = in / groups * prod(window): u (rows, rank) @ sigma @ vh (rank, cols), with a
    leading dimension of size `groups` where there are several; they share one rank. The forward is a convolution with
    vh as its kernel and `rank` channels per group, then one of window 1 with u @ sigma.
    """

    convolve: Callable[..., torch.Tensor]
    input_gradient: Callable[..., torch.Tensor]

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

    def _dense(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return cast(Any, self.get_base_layer())._conv_forward(x, weight, bias)

    def _factored(self, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None) -> torch.Tensor:
        u, sigma, vh = factors
        conv = cast(Any, self.get_base_layer())
        positions = x.numel() // conv.in_channels // math.prod(conv.stride)
        if choose_order(positions, vh.shape[-1], sigma.shape[-1], u.shape[-2]) == "rebuild":
            return self._dense(x, rebuild(u.to(x.dtype), sigma, vh.to(x.dtype)).reshape(self.weight_shape), bias)
        padding = conv.padding
        if conv.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode), 0
        maps = ConvMaps(type(self), self.weight_shape[2:], conv.stride, padding, conv.dilation, conv.groups)
        batch = x if x.dim() == len(self.weight_shape) else x.unsqueeze(0)
        if plain_autograd_only():
            y = maps.pointwise(maps.over_window(batch, vh.to(x.dtype)), u.to(x.dtype) @ sigma, bias)
        else:
            y = FactoredConv.apply(batch, u, sigma, vh, bias, maps)[0]
        return y if batch is x else y.squeeze(0)


class Conv1d(Conv):
    """nn.Conv1d; see `Conv`."""

    convolve = staticmethod(F.conv1d)
    input_gradient = staticmethod(conv1d_input)


class Conv2d(Conv):
    """nn.Conv2d; see `Conv`."""

    convolve = staticmethod(F.conv2d)
    input_gradient = staticmethod(conv2d_input)


@dataclass(frozen=True)
class ConvMaps:
    """A convolution as two linear maps, by matrices ([groups,] out, in): over the window, and of window 1."""

    kind: type[Conv]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    groups: int

    def over_window(self, x: torch.Tensor, vh: torch.Tensor) -> torch.Tensor:
        """x (batch, in, *size) to (batch, groups * rank, *positions)."""
        return self.kind.convolve(x, self._kernel(vh), None, self.stride, self.padding, self.dilation, self.groups)

    def over_window_back(self, g: torch.Tensor, vh: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """The gradient of `over_window` with respect to an x of this size."""
        return self.kind.input_gradient(
            size, self._kernel(vh), g, self.stride, self.padding, self.dilation, self.groups
        )

    def pointwise(self, x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`matrix` applied to the channels of x (batch, channels, *positions), group by group."""
        kernel = matrix.reshape(-1, matrix.shape[-1], *(1 for _ in self.window))
        return self.kind.convolve(x, kernel, bias, groups=self.groups)

    def outer(self, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """g hᵀ ([groups,] rank, rank), summed over batch and positions."""
        batch, rank = g.shape[0], g.shape[1] // self.groups

        def by_group(part: torch.Tensor) -> torch.Tensor:
            positions = math.prod(part.shape[2:])
            return part.reshape(batch, self.groups, rank, positions).permute(1, 2, 0, 3).reshape(self.groups, rank, -1)

        product = by_group(g) @ by_group(h).mT if batch else g.new_zeros(self.groups, rank, rank)
        return product if self.groups > 1 else product.squeeze(0)

    def _kernel(self, vh: torch.Tensor) -> torch.Tensor:
        return vh.reshape(-1, vh.shape[-1] // math.prod(self.window), *self.window)


class FactoredConv(torch.autograd.Function):
    """(y, h) of x, u, sigma, vh, a bias and `ConvMaps`; `FoldedLinear` for convolutions, folded on the way forward.

    Autograd's convolution keeps its input for the gradient of the kernel, frozen or not. Here h (batch, groups * rank,
    *positions) is all that is kept; padding by other values than zeros is done before and keeps the layer's input.
    """

    @staticmethod
    def forward(ctx, x, u, sigma, vh, bias, maps):
        h = maps.over_window(x, vh.to(x.dtype))
        ctx.save_for_backward(u, sigma, vh, h if ctx.needs_input_grad[2] else None)
        ctx.size, ctx.maps = x.shape, maps
        ctx.set_materialize_grads(False)
        return maps.pointwise(h, u.to(x.dtype) @ sigma, bias), h

    @staticmethod
    def backward(ctx, dy, dh):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, sigma, vh, h = ctx.saved_tensors
        u, vh = u.to(sigma.dtype), vh.to(sigma.dtype)
        maps, dsigma, dbias = ctx.maps, None, None
        if dy is not None:
            g = maps.pointwise(dy, u.mT)
            dsigma = None if h is None else maps.outer(g, h)
            through = maps.pointwise(g, sigma.mT)
            dh = through if dh is None else dh + through
            dbias = dy.sum((0, *range(2, dy.dim()))) if ctx.needs_input_grad[4] else None
        dx = maps.over_window_back(dh, vh, ctx.size) if ctx.needs_input_grad[0] and dh is not None else None
        return dx, None, dsigma, None, dbias, None
