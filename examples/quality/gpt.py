"""A GPT on the characters of TinyShakespeare: model, batches, and the loss on held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Size:
    """The shape of a model and of its batches."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int


SIZES = {
    "tiny": Size(layers=2, width=32, heads=2, context=16, batch=4),  # for tests
    "small": Size(layers=3, width=128, heads=4, context=64, batch=16),  # a run takes minutes on one core
    "medium": Size(layers=4, width=192, heads=6, context=128, batch=16),
    "wide": Size(layers=1, width=512, heads=8, context=64, batch=16),  # where products dominate
    "nano": Size(layers=6, width=384, heads=6, context=256, batch=64),  # nanoGPT's 10.7M parameters, for a GPU
}


class Block(nn.Module):
    """Attention and a feed-forward pair, each behind a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.heads = size.heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.out, self.down):  # onto the residual stream, GPT-2's way
            nn.init.normal_(layer.weight, std=0.02 / (2 * size.layers) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_feed(x))))


class GPT(nn.Module):
    """Characters to the scores of the next; the embedding is the output head too."""

    def __init__(self, size: Size, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, size.width), nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


class Text:
    """The first 90 % trains, the next 5 % choose rates, the last 5 % are reported. Losses are nats per character."""

    def __init__(self, path: str | Path, size: Size, device: str = "cpu") -> None:
        text = Path(path).read_text(encoding="utf-8")
        known = {character: i for i, character in enumerate(sorted(set(text)))}
        codes = torch.tensor([known[character] for character in text], device=device)
        ends = [int(share * len(codes)) for share in (0.9, 0.95)]
        self.train, self.validation, self.test = codes[: ends[0]], codes[ends[0] : ends[1]], codes[ends[1] :]
        self.vocabulary, self.size = len(known), size

    def batches(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Random windows of the training text, the same for every method with this seed."""
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            starts = torch.randint(len(self.train) - self.size.context - 1, (self.size.batch,), generator=generator)
            yield self._windows(self.train, starts.tolist())

    @torch.no_grad()
    def loss(self, model: nn.Module, part: str) -> float:
        """Mean loss over non-overlapping windows of a part, at most 400 of them, evenly spread."""
        codes, context = getattr(self, part), self.size.context
        starts = list(range(0, len(codes) - context - 1, context))
        starts = starts[:: max(1, len(starts) // 400)]
        losses = []
        for first in range(0, len(starts), 64):
            tokens, following = self._windows(codes, starts[first : first + 64])
            losses += [F.cross_entropy(model(tokens).mT, following, reduction="none").mean(1)]
        return float(torch.cat(losses).mean())

    def bigram_loss(self, part: str) -> float:
        """The loss of predicting each character from the one before, by counts: the trivial row."""
        counts = torch.ones(self.vocabulary, self.vocabulary)
        counts.index_put_((self.train[:-1].cpu(), self.train[1:].cpu()), torch.tensor(1.0), accumulate=True)
        codes = getattr(self, part).cpu()
        return float(-(counts / counts.sum(1, keepdim=True)).log()[codes[:-1], codes[1:]].mean())

    def _windows(self, codes: torch.Tensor, starts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        window = torch.stack([codes[start : start + self.size.context + 1] for start in starts])
        return window[:, :-1], window[:, 1:]
