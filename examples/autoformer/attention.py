"""Autoformer's auto-correlation as thuml published it, for the attention modules of a transformers model.

transformers 5.23 departs from it in two ways. When the target is longer than the source (always so in the decoder's
cross-attention) it overwrites the queries by their first L - S steps. And it tiles delays and weights in head-major
order over states in batch-major order, so a sample is mixed with the delays of its batch mates, in evaluation too.

Write q, k, v for the projected states, (batch, length, d_model) with all heads side by side. The algorithm only uses
the correlation averaged over heads and channels, c[b, tau] = mean over channels of sum_t q[b, t + tau] k[b, t]
(indices modulo the length): the heads of a sample share their delays and weights, so heads never need to be split.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.autoformer.modeling_autoformer import AutoformerAttention


def shift(x: Tensor, delay: Tensor) -> Tensor:
    """Returns y with y[b, t] = x[b, (t + delay[b]) mod length]; x (batch, length, channels), delay (batch,)."""
    batch, length, channels = x.shape
    rows = (torch.arange(length, device=x.device) + delay[:, None]) % length
    rows += torch.arange(batch, device=x.device)[:, None] * length
    return x.reshape(batch * length, channels).index_select(0, rows.flatten()).view(x.shape)


def overlaps(length: int, delay: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Returns the two pairs (where to read x, where to write y) that make up y[t] = x[(t + delay) mod length]."""
    delay %= length
    wrap = length - delay
    return (slice(delay, None), slice(None, wrap)), (slice(None, delay), slice(wrap, None))


def _weighted_shifts(x: Tensor, weights: Tensor, delays: Tensor) -> Tensor:
    """Returns sum_i weights[:, i] * (x shifted by delays[..., i]); weights (batch, k), delays (k,) or (batch, k)."""
    total = torch.zeros_like(x)
    for i, delay in enumerate(delays.unbind(-1)):
        weight = weights[:, i, None, None]
        if delay.ndim:
            total.addcmul_(shift(x, delay), weight)
            continue
        for read, write in overlaps(x.shape[1], int(delay)):  # shared by the batch: views, no shifted copy
            total[:, write].addcmul_(x[:, read], weight)
    return total


def _correlations_at(x: Tensor, y: Tensor, delays: Tensor) -> Tensor:
    """Returns (batch, k): for every delay the inner product over time and channels of x shifted by it and y."""
    dots = []
    for delay in delays.unbind(-1):
        if delay.ndim:
            dots.append(_inner(shift(x, delay), y))
        else:
            dots.append(sum(_inner(x[:, read], y[:, write]) for read, write in overlaps(x.shape[1], int(delay))))
    return torch.stack(dots, dim=1)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Returns the inner product over time and channels per sample, (batch,)."""
    return torch.linalg.vecdot(x.flatten(1), y.flatten(1))


# The two functions below are each other's derivatives; with autograd's own rules every shifted copy would be kept
# for the backward pass and the time of a training step would be ruled by memory traffic.
class WeightedShifts(torch.autograd.Function):
    """Differentiable `_weighted_shifts` (in `x` and `weights`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, delays: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, delays)
        return _weighted_shifts(x, weights, delays)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weights, delays = ctx.saved_tensors
        grad = grad.contiguous()
        return _weighted_shifts(grad, weights, -delays), _correlations_at(x, grad, delays), None


class CorrelationsAt(torch.autograd.Function):
    """Differentiable `_correlations_at` (in `x` and `y`)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, delays: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, delays)
        return _correlations_at(x, y, delays)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y, delays = ctx.saved_tensors
        return _weighted_shifts(y, grad, -delays), _weighted_shifts(x, grad, delays), None


@torch.no_grad()
def choose_delays(query: Tensor, key: Tensor, count: int, share_over_batch: bool) -> Tensor:
    """Returns the `count` delays of largest correlation: (count,) of the batch mean, or (batch, count) per sample.

    `query` and `key` are (batch, length, channels). The mean over channels is taken before the inverse transform,
    which is linear, so one transform per sample is enough.
    """
    length = query.shape[1]
    spectrum = torch.fft.rfft(query.transpose(1, 2).contiguous())
    spectrum *= torch.fft.rfft(key.transpose(1, 2).contiguous()).conj()
    correlation = torch.fft.irfft(spectrum.sum(dim=1), n=length)
    if share_over_batch:
        correlation = correlation.mean(dim=0)
    return correlation.topk(count, dim=-1).indices


def fit_length(x: Tensor, length: int) -> Tensor:
    """Cuts or zero-fills `x` (batch, steps, channels) at its end to `length` steps."""
    return nn.functional.pad(x, (0, 0, 0, length - x.shape[1])).contiguous()


def auto_correlation(query: Tensor, key: Tensor, value: Tensor, factor: int, training: bool) -> Tensor:
    """Returns sum_i softmax(c[:, tau_i]) * shift(value, tau_i) over the int(factor * ln L) best delays tau_i.

    Args:
        query: (batch, L, d_model); key, value: (batch, S, d_model), cut or zero-filled to L.
        training: delays are chosen from the mean over the batch (one set for all); else from each sample alone.
    """
    length, channels = query.shape[1:]
    key, value = fit_length(key, length), fit_length(value, length)
    delays = choose_delays(query, key, int(factor * math.log(length)), share_over_batch=training)
    weights = (CorrelationsAt.apply(query, key, delays) / channels).softmax(dim=-1)
    return WeightedShifts.apply(value, weights, delays)


class MendedAutoformerAttention(AutoformerAttention):
    """`AutoformerAttention` with thuml's algorithm. Same parameters, same names; made by `mend_attention`."""

    autocorrelation_factor: int

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Maps (batch, time, d_model) to the same shape; the second output (attention weights) is never computed.

        A key/value cache among `kwargs` is left unused: the decoder always runs once over its whole length.

        Raises:
            NotImplementedError: an attention mask was given.
        """
        if attention_mask is not None:
            raise NotImplementedError(
                "attention_mask: must be absent, auto-correlation has no query-by-key matrix to mask, got shape "
                f"{tuple(attention_mask.shape)}; leave it away and cut the series to its observed part."
            )
        source = hidden_states if key_value_states is None else key_value_states
        query, key, value = self.q_proj(hidden_states), self.k_proj(source), self.v_proj(source)
        return self.out_proj(auto_correlation(query, key, value, self.autocorrelation_factor, self.training)), None


def mend_attention(model: nn.Module) -> int:
    """Turns every `AutoformerAttention` of `model` into the mended one, in place; returns how many were turned.

    Raises:
        ValueError: the model holds no such module.
    """
    attentions = [module for module in model.modules() if isinstance(module, AutoformerAttention)]
    if not attentions:
        raise ValueError(
            f"mend_attention: the model must hold AutoformerAttention modules, {type(model).__name__} holds none; "
            "pass a transformers Autoformer."
        )
    for module in attentions:
        module.__class__ = MendedAutoformerAttention
    return len(attentions)
