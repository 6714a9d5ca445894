"""nn.Linear and transformers' Conv1D."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F

from ..svd import contract
from .base import OIALRLayer


class Linear(OIALRLayer):
    """nn.Linear with weight (out, in) = u (out, rank) @ sigma @ vh (rank, in): y = x vhᵀ sigmaᵀ uᵀ + bias."""

    input_first = False  # whether the stored weight is (in, out)

    def _adapted(self, x: torch.Tensor, adapter: str) -> torch.Tensor:
        bias = cast(torch.Tensor | None, self.get_base_layer().bias)
        if not self.is_factored(adapter):
            weight = self.oialr_weight[adapter]
            bias = None if bias is None else bias.to(x.dtype)
            return F.linear(x, weight.T if self.input_first else weight, bias)
        u, sigma, vh = self.factors(adapter)
        y = contract(x, u, sigma, vh) if self.input_first else contract(x, vh.T, sigma.T, u.T)
        return y if bias is None else y + bias.to(y.dtype)


class Conv1D(Linear):
    """transformers' Conv1D, whose weight is stored (in, out) = u (in, rank) @ sigma @ vh (rank, out)."""

    input_first = True
