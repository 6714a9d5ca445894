"""nn.Linear and transformers' Conv1D."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..linalg import Factors
from .base import OIALRLayer
from .product import linear


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

    def _dense(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight.T if self.input_first else weight, bias)

    def _factored(self, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None) -> torch.Tensor:
        u, sigma, vh = factors
        if self.input_first:
            return linear(x, vh.T, sigma.T, u.T, bias)
        return linear(x, u, sigma, vh, bias)


class TransposedLinear(Linear):
    """transformers' Conv1D, whose weight is stored (in, out) = u (in, rank) @ sigma @ vh (rank, out)."""

    input_first = True
