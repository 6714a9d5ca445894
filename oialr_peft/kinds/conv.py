"""nn.Conv1d, nn.Conv2d and nn.Conv3d, with any stride, padding, dilation and groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from ..compat.torch_ import convolve_with, padded, plain_autograd_only
from ..linalg import Factors, Seen, rebuild
from .kind import Kind
from .product import choose_order


Convolve = Callable[..., torch.Tensor]


class Conv(Kind):
    """A convolution whose kernel (out, in / groups, *window) is one matrix per group.

    With rows = out / groups and cols = in / groups * prod(window): u (rows, rank) @ sigma @ vh (rank, cols), with a
    leading dimension of size `groups` where there are several; they share one rank. The forward is a convolution with
    vh as its kernel and `rank` channels per group, then one of window 1 with u @ sigma.
    """

    def __init__(self, plain: type[nn.Module], convolve: Convolve, input_gradient: Convolve) -> None:
        super().__init__(plain)
        self.convolve, self.input_gradient = convolve, input_gradient

    def matrix_shape(self, base: Any) -> tuple[int, ...]:
        rows, cols = base.out_channels // base.groups, base.in_channels // base.groups * math.prod(base.kernel_size)
        return (rows, cols) if base.groups == 1 else (base.groups, rows, cols)

    def features(self, base: Any) -> tuple[int, int]:
        return base.in_channels, base.out_channels

    def multiply(
        self, base: Any, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None, *args: Any
    ) -> torch.Tensor:
        u, sigma, vh = factors
        if u is None and vh is None:
            return convolve_with(base, x, sigma.reshape(kernel_shape(base)), bias)
        positions = x.numel() // base.in_channels // math.prod(base.stride)
        rows, cols = self.matrix_shape(base)[-2:]
        if choose_order(positions, cols, min(sigma.shape[-2:]), rows) == "rebuild":
            weight = rebuild(*factors.bases_to(x.dtype))
            return convolve_with(base, x, weight.reshape(kernel_shape(base)), bias)
        batch, maps = self._over(base, x)
        y = _factored(maps, batch, factors, bias)
        return y if batch.dim() == x.dim() else y.squeeze(0)

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        """Where the first of the two convolutions gives it: it enters the core there, or leaves it."""
        batch, maps = self._over(base, x)
        left, core, right = factors
        if right is not None:
            return Seen("right", coming=maps.second_moment(maps.over_window(batch, right)))
        kernel = core.reshape(self.matrix_shape(base)) if left is None else core
        return Seen("left", made=maps.second_moment(maps.over_window(batch, kernel)))

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        batch, maps = self._over(base, dy, pad=False)
        left, core, right = factors
        g = batch if left is None else maps.pointwise(batch, left.mT)
        if right is None:
            return Seen("left", coming=maps.second_moment(g))
        return Seen("right", made=maps.second_moment(maps.pointwise(g, core.mT)))

    def _over(self, base: Any, x: torch.Tensor, pad: bool = True) -> tuple[torch.Tensor, ConvMaps]:
        """x as a batch, padded where that is not the convolution's to do, and the layer as maps of it."""
        x, padding = padded(base, x) if pad else (x, 0)
        maps = ConvMaps(self, base.kernel_size, base.stride, padding, base.dilation, base.groups)
        return (x if x.dim() == 2 + len(base.kernel_size) else x.unsqueeze(0)), maps

    def pair(self, base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        make: Any = self.plain  # not the layer's own class: one that inherits the forward may take other arguments
        inner = rank * base.groups
        options = {name: getattr(base, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        down = make(base.in_channels, inner, base.kernel_size, bias=False, **options)
        return down, make(inner, base.out_channels, 1, groups=base.groups, bias=base.bias is not None)

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        down, up = right.reshape(-1, *kernel_shape(base)[1:]), left.reshape(-1, left.shape[-1])
        return down, up.reshape(*up.shape, *(1 for _ in base.kernel_size))

    def unpaired(self, down: Any, up: Any) -> nn.Module:
        options = {name: getattr(down, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
        make: Any = self.plain
        return make(down.in_channels, up.out_channels, down.kernel_size, bias=up.bias is not None, **options)

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        left, right = up.reshape(layer.groups, -1, up.shape[1]), down.reshape(layer.groups, -1, down[0].numel())
        return (left @ right).reshape(kernel_shape(layer))


def kernel_shape(base: Any) -> tuple[int, ...]:
    """The shape of the kernel; the weight itself may have been freed."""
    return (base.out_channels, base.in_channels // base.groups, *base.kernel_size)


def _factored(maps: ConvMaps, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None) -> torch.Tensor:
    u, sigma, vh = factors
    if u is None or vh is None:  # one side trains: its matrix is the core
        inner, outer = (sigma, u) if vh is None else (vh, sigma)
        return maps.pointwise(maps.over_window(x, inner.to(x.dtype)), cast(torch.Tensor, outer).to(x.dtype), bias)
    if plain_autograd_only():
        return maps.pointwise(maps.over_window(x, vh.to(x.dtype)), u.to(x.dtype) @ sigma, bias)
    return FactoredConv.apply(x, u, sigma, vh, bias, maps)[0]


@dataclass(frozen=True)
class ConvMaps:
    """A convolution as two linear maps, by matrices ([groups,] out, in): over the window, and of window 1."""

    kind: Conv
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

    def second_moment(self, h: torch.Tensor) -> torch.Tensor:
        """Of the channels of h at all positions, group by group, in float32 or better."""
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        return self.outer(h, h)

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
