"""The cheapest way of a batch through u @ sigma @ vh and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]

from ..svd import cheapest_order, rebuild


def linear(
    x: torch.Tensor, u: torch.Tensor, sigma: torch.Tensor, vh: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x (..., cols) @ (u (rows, rank) @ sigma @ vh (rank, cols))ᵀ + bias in the cheapest order; u, vh are frozen.

    The choice depends on shapes alone, so a checkpointed forward and its recomputation take the same way.
    """
    batch = x.numel() // x.shape[-1] if x.shape[-1] else 0
    order = cheapest_order(batch, vh.shape[1], sigma.shape[0], u.shape[0])
    if order == "rebuild":
        return F.linear(x, rebuild(u, sigma, vh), bias)
    if order == "chain" or plain_autograd_only():
        return F.linear(F.linear(F.linear(x, vh), sigma), u, bias)
    return FoldedLinear.apply(x, u, sigma, vh, bias)[0]


def plain_autograd_only() -> bool:
    """Whether something is at work that takes no Function: torch.func, forward-mode derivatives, torch.jit.trace.

    torch.func would take the newer form of a Function, but its signature is then inspected in every call, for as long
    as three small products last.
    """
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return torch._C._are_functorch_transforms_active() or forward_mode or is_tracing()


class FoldedLinear(torch.autograd.Function):
    """(y, h) of x, u, sigma, vh and a bias: h = x @ vhᵀ, y = h @ sigmaᵀ @ uᵀ + bias.

    Autograd's chain has three products of batch x rank x rank. With sigma folded into u on the way forward and into vh
    on the way back one is left, the gradient of sigma. Only h (batch x rank) is kept for backward. It is an output for
    the sake of second derivatives, which find its graph that way.
    """

    @staticmethod
    def forward(ctx, x, u, sigma, vh, bias):
        h = F.linear(x, vh)
        ctx.save_for_backward(u, sigma, vh, h if ctx.needs_input_grad[2] else None)
        ctx.set_materialize_grads(False)
        if _folds(h, u.shape[0]):
            return F.linear(h, u @ sigma, bias), h
        return F.linear(F.linear(h, sigma), u, bias), h

    @staticmethod
    def backward(ctx, dy, dh):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, sigma, vh, h = ctx.saved_tensors
        dx, dsigma = None if dh is None else dh @ vh, None
        if dy is None:
            return dx, None, None, None, None
        g = dy @ u
        if h is not None:
            dsigma = g.reshape(-1, g.shape[-1]).mT @ h.reshape(-1, h.shape[-1])
        if ctx.needs_input_grad[0]:
            through = g @ (sigma @ vh) if _folds(g, vh.shape[1]) else g @ sigma @ vh
            dx = through if dx is None else dx + through
        dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if ctx.needs_input_grad[4] else None
        return dx, None, dsigma, None, dbias


def _folds(h: torch.Tensor, size: int) -> bool:
    """Whether sigma is cheaper to fold into a factor of `size` rows than to multiply by h (..., rank)."""
    return size * h.shape[-1] < h.numel()
