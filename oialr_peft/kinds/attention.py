"""nn.MultiheadAttention, taken apart into layers that can be factored one by one."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..compat.torch_ import is_packed, set_parameter
from .apart import TakenApart


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class MultiheadAttention(TakenApart):
    """nn.MultiheadAttention with its projections as nn.Linear children: `q_proj`, `k_proj`, `v_proj`, `out_proj`.

    torch packs three of them into one Parameter and reads all weights directly, past any adapter. Each child is
    wrapped like any other linear layer; `join` puts them together again. Takes over the parameters of `source`.
    """

    parts: ClassVar[tuple[str, ...]] = PROJECTIONS
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None

    # torch's encoder layers then call this module (and their linear layers) instead of reading weights.
    _qkv_same_embed_dim = False

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = source.embed_dim, source.kdim, source.vdim
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        self.add_zero_attn, self.training = source.add_zero_attn, source.training
        biases = (None,) * 3 if source.in_proj_bias is None else source.in_proj_bias.detach().chunk(3)
        weights = projection_weights(source)
        for name, bias in zip(PROJECTIONS[:3], biases, strict=True):
            setattr(self, name, _linear(weights[name].detach(), bias))
        self.out_proj = source.out_proj
        self._adopt("bias_k", source.bias_k)
        self._adopt("bias_v", source.bias_v)

    def join(self) -> nn.MultiheadAttention:
        """The nn.MultiheadAttention with the weights of the children."""
        q, k, v = self.q_proj, self.k_proj, self.v_proj
        joined: Any = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            dropout=self.dropout,
            bias=q.bias is not None,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
        ).train(self.training)
        if is_packed(joined):
            joined.in_proj_weight = nn.Parameter(torch.cat([q.weight, k.weight, v.weight]).detach())
        else:
            joined.q_proj_weight, joined.k_proj_weight, joined.v_proj_weight = q.weight, k.weight, v.weight
        if q.bias is not None:
            joined.in_proj_bias = nn.Parameter(torch.cat([q.bias, k.bias, v.bias]).detach())
        joined.out_proj = self.out_proj
        joined.bias_k, joined.bias_v = self.bias_k, self.bias_v
        return joined.requires_grad_(self.out_proj.weight.requires_grad)

    @property
    def in_proj_weight(self) -> torch.Tensor:
        """For code that reads or initialises it, as SigLIP's does; a copy, made from the children."""
        return torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))

    @property
    def in_proj_bias(self) -> torch.Tensor | None:
        """As `in_proj_weight`."""
        biases = (self.q_proj.bias, self.k_proj.bias, self.v_proj.bias)
        return None if biases[0] is None else torch.cat(biases)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As nn.MultiheadAttention: the output in the layout of `query`, and the attention weights or None."""
        if is_causal and attn_mask is None:
            raise RuntimeError("`is_causal=True` needs `attn_mask` too, as in nn.MultiheadAttention.")
        batched = query.dim() == 3
        batch_dim = 0 if self.batch_first or not batched else 1
        query, key, value = (
            x.transpose(0, batch_dim) if batched else x.unsqueeze(0) for x in (query, key, value)
        )  # (batch, length, features)
        q = self._heads(self.q_proj(query))
        k, v = _append(self.k_proj(key), self.bias_k), _append(self.v_proj(value), self.bias_v)
        k, v = self._heads(k), self._heads(v)
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2] - key.shape[1])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / math.sqrt(self.head_dim)
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
            y = weights @ v
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y.transpose(0, batch_dim), weights

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, embed) to (batch, heads, length, head_dim)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self, attn_mask: torch.Tensor | None, padding: torch.Tensor | None, q: torch.Tensor, added: int
    ) -> torch.Tensor | None:
        """What is added to the scores (batch, heads, target, source); nothing masks the `added` last keys."""
        parts = []
        if attn_mask is not None:
            mask = _additive(attn_mask, q.dtype)
            parts.append(mask if mask.dim() == 2 else mask.unflatten(0, q.shape[:2]))
        if padding is not None:
            padding = padding if padding.dim() == 2 else padding.unsqueeze(0)
            parts.append(_additive(padding, q.dtype)[:, None, None, :])
        return F.pad(sum(parts[1:], parts[0]), (0, added)) if parts else None

    def _adopt(self, name: str, parameter: Any) -> None:
        self.register_parameter(name, None)
        set_parameter(self, name, parameter)


def is_attention(layer: nn.Module) -> bool:
    """Whether the layer can be taken apart into its projections."""
    return isinstance(layer, nn.MultiheadAttention) and type(layer).forward is nn.MultiheadAttention.forward


def leave_fast_path(model: nn.Module) -> None:
    """Make torch's encoders pass ordinary tensors to taken-apart attention, not nested ones for their fast path."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            if any(isinstance(getattr(layer, "self_attn", None), MultiheadAttention) for layer in module.layers):
                module.use_nested_tensor = False


def projection_weights(source: nn.MultiheadAttention) -> dict[str, torch.Tensor]:
    """The weights (out, in) of the four projections by name."""
    if is_packed(source):
        parts = source.in_proj_weight.chunk(3)
    else:
        parts = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
    return dict(zip(PROJECTIONS, (*parts, source.out_proj.weight), strict=True))


def _append(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (batch, length, features) with `bias` (1, 1, features) as one more position."""
    return x if bias is None else torch.cat([x, bias.to(x.dtype).expand(x.shape[0], 1, -1)], dim=1)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to scores; True in a boolean one means "not allowed"."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
    return mask.to(dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """An nn.Linear with copies of the values; slices of one storage could be neither freed nor saved one by one."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    set_parameter(linear, "weight", nn.Parameter(weight.clone()))
    if bias is not None:
        set_parameter(linear, "bias", nn.Parameter(bias.clone()))
    return linear
