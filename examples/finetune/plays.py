"""Characters: a GPT pretrained on sources of Python's standard library, fine-tuned on TinyShakespeare.

In this order, because sources hold every character of plays, but plays no digits and underscores: their embeddings
would be random where only adapters train.
"""

from __future__ import annotations

import copy
import hashlib
import string
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutput


sys.path.append(str(Path(__file__).parents[1] / "quality"))
from gpt import GPT, SIZES, Text


ALPHABET = "\n" + string.printable[:95]
SOURCES = 2_000_000  # characters


class Corpus(Text):
    """A text whose characters are numbered by the alphabet; others are left out."""

    def __init__(self, text: str, size: str) -> None:
        codes = {character: i for i, character in enumerate(sorted(ALPHABET))}
        numbers = torch.tensor([codes[character] for character in text if character in codes])
        ends = [int(share * len(numbers)) for share in (0.9, 0.95)]
        self.train, self.validation, self.test = numbers[: ends[0]], numbers[ends[0] : ends[1]], numbers[ends[1] :]
        self.vocabulary, self.size = len(ALPHABET), SIZES[size]
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:12]


class Characters(GPT):
    """The GPT of examples/quality, with a loss in its output, as AdaLoRA's tuner wants it for its penalty."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        scores = super().forward(x)
        return CausalLMOutput(None if labels is None else F.cross_entropy(scores.mT, labels), scores)  # type: ignore[arg-type]


class Plays:
    """Nats per character of held-out plays."""

    best = min
    targets, heads = ["qkv", "out", "up", "down"], []
    share = 0.5
    base_steps, base_rate, steps = 1000, 2e-3, 100

    def __init__(self, data: Path, tiny: bool = False) -> None:
        self.size = "tiny" if tiny else "small"
        files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        self.sources = Corpus("\n".join(file.read_text(encoding="utf-8") for file in files)[:SOURCES], self.size)
        (file,) = (data / "tinyshakespeare").glob("*.txt")
        self.text = Corpus(file.read_text(encoding="utf-8"), self.size)
        self.digests = {"sources": self.sources.digest, "plays": self.text.digest}

    def untrained(self) -> nn.Module:
        return Characters(SIZES[self.size], len(ALPHABET))

    def pretraining(self) -> tuple[nn.Module, Iterator[dict[str, torch.Tensor]]]:
        return self.untrained(), batches(self.sources, 0)

    def start(self, base: nn.Module) -> nn.Module:
        return copy.deepcopy(base)

    def batches(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        return batches(self.text, seed)

    def figure(self, net: Any, part: str) -> float:
        scores: Any = lambda tokens: net(tokens).logits  # noqa: E731
        return self.text.loss(scores, part)

    def trivial(self) -> float:
        """Each character from the one before, by counts."""
        return self.text.bigram_loss("test")


def batches(text: Text, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Those of a text, by the names that the model has for them."""
    return ({"x": tokens, "labels": following} for tokens, following in text.batches(seed))
