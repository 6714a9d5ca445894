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
    part_of_attention = False  # whether it is a projection of an nn.MultiheadAttention that was taken apart

    @property
    def in_features(self) -> int:
        return self.weight_shape[0 if self.input_first else 1]

    @property
    def out_features(self) -> int:
        return self.weight_shape[1 if self.input_first else 0]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can write W - W0 as LoRA: W0 must be there, under a name that the base model knows."""
        return self.holds(adapter_name) and not self.base_is_freed and not self.part_of_attention

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """W - W0 in float32, in the shape of the stored weight."""
        base = self.base_weight if self._unmerged_weight is None else self._unmerged_weight
        matrix = self.matrix(adapter).float()
        if self.is_factored(adapter):
            u, _, vh = self.factors(adapter)
            matrix = u.float() @ matrix @ vh.float()
        return matrix - base.detach().float()

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
