"""nn.Linear and transformers' Conv1D."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F

from ..svd import contract
from .base import OIALRLayer


class Linear(OIALRLayer):
    """nn.Linear with weight (out, in) = u (out, rank) @ sigma @ vh (rank, in): y = x vhᵀ sigmaᵀ uᵀ + bias."""

    def _adapted(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        bias = self._bias(x)
        if not self.is_factored(adapter):
            return F.linear(x, self.oialr_weight[adapter], bias)
        u, sigma, vh = self.factors(adapter)
        y = contract(x, vh.T, sigma.T, u.T)
        return y if bias is None else y + bias.to(y.dtype)

    def _bias(self, x: torch.Tensor) -> torch.Tensor | None:
        bias = cast(torch.Tensor | None, self.get_base_layer().bias)
        return None if bias is None else bias.to(x.dtype)


class Conv1D(Linear):
    """transformers' Conv1D, whose weight is stored (in, out) = u (in, rank) @ sigma @ vh (rank, out)."""

    def _adapted(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        bias = self._bias(x)
        if not self.is_factored(adapter):
            return F.linear(x, self.oialr_weight[adapter].T, bias)
        u, sigma, vh = self.factors(adapter)
        y = contract(x, u, sigma, vh)
        return y if bias is None else y + bias.to(y.dtype)
