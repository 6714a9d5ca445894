"""The cheapest way of a batch through u @ sigma @ vh and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..compat.torch_ import plain_autograd_only
from ..linalg import Factors, Seen, cheapest_order, rebuild, second_moment


def linear(
    x: torch.Tensor,
    u: torch.Tensor | None,
    sigma: torch.Tensor,
    vh: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x (..., cols) @ (u (rows, rank) @ sigma @ vh (rank, cols))ᵀ + bias in the cheapest order; u, vh are frozen.

    u and vh may have another dtype than the rest; they are cast to that of x. Where one is None it is the identity.
    """
    if u is None or vh is None:
        held = Factors(u, sigma, vh).bases_to(x.dtype)
        *inner, outer = (matrix for matrix in reversed(held) if matrix is not None)
        for matrix in inner:
            x = F.linear(x, matrix)
        return F.linear(x, outer, bias)
    batch = x.numel() // x.shape[-1] if x.shape[-1] else 0
    order = choose_order(batch, vh.shape[1], sigma.shape[0], u.shape[0])
    if order == "folded" and not plain_autograd_only():
        # Flat, because a Function whose output is a view forbids in-place operations on it.
        y = FoldedLinear.apply(x.reshape(batch, x.shape[-1]), u, sigma, vh, bias)[0]
        return y.reshape(*x.shape[:-1], u.shape[0])
    u, vh = u.to(x.dtype), vh.to(x.dtype)
    if order == "rebuild":
        return F.linear(x, rebuild(u, sigma, vh), bias)
    return F.linear(F.linear(F.linear(x, vh), sigma), u, bias)


def linear_seen(x: torch.Tensor, factors: Factors) -> Seen:
    """Inputs of `linear` where they enter the core, or where they leave it if that has fewer coordinates."""
    _, core, right = factors
    h = x if right is None else F.linear(x, right)
    if core.shape[-2] < core.shape[-1]:
        return Seen("left", made=second_moment(F.linear(h, core)))
    return Seen("right", coming=second_moment(h))


def linear_felt(dy: torch.Tensor, factors: Factors) -> Seen:
    """The gradient of what `linear` gives, at the same place."""
    left, core, _ = factors
    g = dy if left is None else dy @ left
    if core.shape[-2] < core.shape[-1]:
        return Seen("left", coming=second_moment(g))
    return Seen("right", made=second_moment(g @ core))


def choose_order(batch: int, n_in: int, rank: int, n_out: int) -> str:
    """`linalg.cheapest_order`, but the chain for torch.export, whose graph must hold for every batch.

    The choice depends on shapes alone, so a checkpointed forward and its recomputation take the same way.
    """
    return "chain" if torch.compiler.is_exporting() else cheapest_order(batch, n_in, rank, n_out)


class FoldedLinear(torch.autograd.Function):
    """(y, h) of x (batch, cols), u, sigma, vh and a bias: h = x @ vhᵀ, y = h @ sigmaᵀ @ uᵀ + bias.

    Autograd's chain has three products of batch x rank x rank. With sigma folded into u on the way forward and into vh
    on the way back one is left, the gradient of sigma. Only h (batch x rank) is kept for backward, not u and vh in
    the dtype of x. It is an output for the sake of second derivatives, which find its graph that way.
    """

    @staticmethod
    def forward(ctx, x, u, sigma, vh, bias):
        h = F.linear(x, vh.to(x.dtype))
        ctx.save_for_backward(u, sigma, vh, h if ctx.needs_input_grad[2] else None)
        ctx.set_materialize_grads(False)
        u = u.to(x.dtype)
        if _folds(h, u.shape[0]):
            return F.linear(h, u @ sigma, bias), h
        return F.linear(F.linear(h, sigma), u, bias), h

    @staticmethod
    def backward(ctx, dy, dh):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, sigma, vh, h = ctx.saved_tensors
        u, vh = u.to(sigma.dtype), vh.to(sigma.dtype)
        dx, dsigma = None if dh is None else dh @ vh, None
        if dy is None:
            return dx, None, None, None, None
        g = dy @ u
        if h is not None:
            dsigma = g.mT @ h
        if ctx.needs_input_grad[0]:
            through = g @ (sigma @ vh) if _folds(g, vh.shape[1]) else g @ sigma @ vh
            dx = through if dx is None else dx + through
        dbias = dy.sum(0) if ctx.needs_input_grad[4] else None
        return dx, None, dsigma, None, dbias


def _folds(h: torch.Tensor, size: int) -> bool:
    """Whether sigma is cheaper to fold into a factor of `size` rows than to multiply by h (batch, rank)."""
    return size * h.shape[-1] < h.numel()
