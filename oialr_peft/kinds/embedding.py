"""nn.Embedding: a table of few columns, looked up, and a small matrix behind it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..linalg import Factors, Seen, second_moment
from .kind import Kind


class Embedding(Kind):
    """A table (entries, size) = u (entries, rank) @ sigma @ vh (rank, size): rows of u, times sigma and vh."""

    def takes(self, layer: Any) -> bool:
        """Not one that rescales its rows as it is read, nor one with gradients of another kind."""
        return layer.max_norm is None and not layer.sparse and not layer.scale_grad_by_freq

    def matrix_shape(self, base: Any) -> tuple[int, ...]:
        return self.features(base)

    def features(self, base: Any) -> tuple[int, int]:
        return base.num_embeddings, base.embedding_dim

    def multiply(
        self, base: Any, x: torch.Tensor, factors: Factors, bias: torch.Tensor | None, *args: Any
    ) -> torch.Tensor:
        dtype = factors.core.dtype
        table, *matrices = (matrix for matrix in factors if matrix is not None)
        y = F.embedding(x, table, base.padding_idx).to(dtype)
        if base.padding_idx is not None and table is not factors.core:  # the padding's row trains in no other layer
            y = torch.where((x == base.padding_idx).unsqueeze(-1), y.detach(), y)
        for matrix in matrices:
            y = y @ matrix.to(dtype)
        return y

    def seen(self, base: Any, x: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        """Behind the core, where a table has few coordinates."""
        left, core, _ = factors
        h = F.embedding(x, core) if left is None else F.embedding(x, left) @ core
        return Seen("right", made=second_moment(h))

    def felt(self, base: Any, dy: torch.Tensor, factors: Factors, *args: Any) -> Seen:
        g = dy if factors.right is None else dy @ factors.right.mT
        return Seen("right", coming=second_moment(g))

    def pair(self, base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
        down = nn.Embedding(base.num_embeddings, rank, padding_idx=base.padding_idx)
        return down, nn.Linear(rank, base.embedding_dim, bias=False)

    def pair_weights(self, base: Any, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left, right.mT

    def unpaired(self, down: Any, up: Any) -> nn.Module:
        return nn.Embedding(down.num_embeddings, up.out_features, padding_idx=down.padding_idx)

    def pair_product(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return down @ up.mT
