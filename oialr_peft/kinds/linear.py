"""nn.Linear and transformers' Conv1D."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..linalg import Factors, Seen
from .kind import Kind
from .product import linear, linear_felt, linear_seen
from .quantised import is_quantised


class Linear(Kind):
    """nn.Linear with weight (out, in) = u (out, rank) @ sigma @ vh (rank, in): y = x vhᵀ sigmaᵀ uᵀ + bias."""

    takes_lora = True

    def matrix_shape(self, base: Any) -> tuple[int, ...]:
        return self.features(base)[::-1] if is_quantised(base) else tuple(base.weight.shape)

    def features(self, base: nn.Linear) -> tuple[int, int]:
        return base.in_features, base.out_features

    def multiply(
        self, base: Any, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None, *args: Any
    ) -> torch.Tensor:
        return linear(x, *factors, bias)

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return linear_seen(x, factors)

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return linear_felt(dy, factors)

    def pair(self, base: nn.Linear, rank: int) -> tuple[nn.Module, nn.Module]:
        inputs, outputs = self.features(base)
        return nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=base.bias is not None)

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return right, left

    def unpaired(self, down: nn.Linear, up: nn.Linear) -> nn.Module:
        return nn.Linear(down.in_features, up.out_features, bias=up.bias is not None)

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return up @ down


class TransposedLinear(Linear):
    """transformers' Conv1D, whose weight is stored (in, out) = u (in, rank) @ sigma @ vh (rank, out)."""

    def features(self, base: Any) -> tuple[int, int]:
        return base.nx, base.nf

    def multiply(
        self, base: Any, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None, *args: Any
    ) -> torch.Tensor:
        return linear(x, *factors.transposed(), bias)

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return linear_seen(x, factors.transposed()).flipped

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        return linear_felt(dy, factors.transposed()).flipped

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left.mT, right.mT

    def unpaired(self, down: nn.Linear, up: nn.Linear) -> nn.Module:
        return Conv1D(up.out_features, down.in_features)

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return (up @ down).mT
