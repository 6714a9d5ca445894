"""Two small tasks: characters of TinyShakespeare by a GPT, CIFAR-10 by a ViT. Each gives a model, batches, a loss."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


sys.path.append(str(Path(__file__).parents[1] / "quality"))
from gpt import GPT, Size, Text


SMALL = Size(2, 96, 4, 64, 16)


class Characters:
    """Nats per character on the last 5 % of the text."""

    def __init__(self, data: Path, size: Size = SMALL) -> None:
        self.text = Text(data / "tinyshakespeare" / "input.txt", size)

    def model(self) -> nn.Module:
        return GPT(self.text.size, self.text.vocabulary)

    def batches(self, seed: int) -> Iterator[Any]:
        return self.text.batches(seed)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).mT, batch[1])

    def loss_on(self, model: nn.Module, part: str) -> float:
        """Of "validation" or "test"."""
        return self.text.loss(model, part)


class Pictures:
    """Cross-entropy on 2,000 pictures of the test set, after training on 20,000; 2,000 more of these validate."""

    def __init__(self, data: Path) -> None:
        pictures, labels = _read(data / "cifar10-jpeg" / "train.parquet", 22_000)
        self.train, validation = ((pictures[part], labels[part]) for part in (slice(20_000), slice(20_000, None)))
        self.held_out = {"validation": validation, "test": _read(data / "cifar10-jpeg" / "test.parquet", 2_000)}

    def model(self) -> nn.Module:
        size: Any = {"image_size": 32, "patch_size": 8, "num_labels": 10, "hidden_size": 96, "intermediate_size": 384}
        return ViTForImageClassification(ViTConfig(**size, num_hidden_layers=3, num_attention_heads=4))

    def batches(self, seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            chosen = torch.randint(len(self.train[1]), (64,), generator=generator)
            yield self.train[0][chosen], self.train[1][chosen]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1])

    @torch.no_grad()
    def loss_on(self, model: nn.Module, part: str) -> float:
        """Of "validation" or "test"."""
        model.eval()
        parts = zip(*(values.split(250) for values in self.held_out[part]), strict=True)
        mean = float(torch.stack([self.loss(model, part) for part in parts]).mean())
        model.train()
        return mean


TASKS = {"characters": Characters, "pictures": Pictures}


def _read(path: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first pictures of a file, in [-1, 1], and their labels."""
    rows = parquet.read_table(path).slice(0, count).to_pylist()
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, labels
