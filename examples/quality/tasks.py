"""Two small tasks: characters of TinyShakespeare by a GPT, CIFAR-10 by a ViT. Each gives a model, batches, a loss."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
import torch.nn.functional as F
from gpt import GPT, SIZES, Size, Text
from PIL import Image
from ridge import ridge_accuracy
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


NARROW = Size(layers=2, width=96, heads=4, context=64, batch=16)


class Characters:
    """Nats per character on the last 5 % of the text; `data` is the folder of tinyshakespeare/, or a text itself."""

    sizes = SIZES

    def __init__(
        self,
        data: Path,
        size: Size = NARROW,
        device: str = "cpu",
        make: Callable[[Size, int], nn.Module] = GPT,
    ) -> None:
        path = data / "tinyshakespeare" / "input.txt" if data.is_dir() else data
        self.text, self.device, self.make = Text(path, size, device), device, make

    def model(self) -> nn.Module:
        return self.make(self.text.size, self.text.vocabulary).to(self.device)

    def batches(self, seed: int) -> Iterator[Any]:
        return self.text.batches(seed)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]).mT, batch[1])

    def loss_on(self, model: nn.Module, part: str) -> float:
        """Of "validation" or "test"."""
        return self.text.loss(model, part)

    def measures(self, model: nn.Module, part: str) -> dict[str, float]:
        """Every figure of a part that is reported, by name."""
        return {"loss": self.loss_on(model, part)}

    def trivial(self) -> dict[str, float]:
        """The same of predicting each character from the one before by counts, on the test text."""
        return {"loss": self.text.bigram_loss("test")}


@dataclass(frozen=True)
class PictureSize:
    """The shape of a model, of its batches, and how many pictures train, validate and test."""

    layers: int
    width: int
    heads: int
    batch: int = 64
    pictures: tuple[int, int, int] = (20_000, 2_000, 2_000)


PICTURE_SIZES = {
    "tiny": PictureSize(layers=2, width=32, heads=2, batch=8, pictures=(40, 20, 20)),  # for tests
    "small": PictureSize(layers=3, width=128, heads=4, pictures=(20_000, 2_000, 8_000)),
}


class Pictures:
    """Cross-entropy on pictures of CIFAR-10's test set; the last of the training set that are read validate."""

    sizes = PICTURE_SIZES

    def __init__(self, data: Path, size: PictureSize = PictureSize(3, 96, 4), device: str = "cpu") -> None:
        trained, validating, testing = size.pictures
        folder = data / "cifar10-jpeg"
        pictures, labels = (t.to(device) for t in _read(folder / "train.parquet", trained + validating))
        self.train, validation = ((pictures[part], labels[part]) for part in (slice(trained), slice(trained, None)))
        test = [t.to(device) for t in _read(folder / "test.parquet", testing)]
        self.held_out, self.size, self.device = {"validation": validation, "test": test}, size, device

    def model(self) -> nn.Module:
        width = self.size.width
        size: Any = {"image_size": 32, "patch_size": 8, "num_labels": 10, "hidden_size": width}
        size |= {"num_hidden_layers": self.size.layers, "num_attention_heads": self.size.heads}
        model: Any = ViTForImageClassification(ViTConfig(**size, intermediate_size=4 * width))
        return model.to(self.device)

    def batches(self, seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            chosen = torch.randint(len(self.train[1]), (self.size.batch,), generator=generator).to(self.device)
            yield self.train[0][chosen], self.train[1][chosen]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1])

    def loss_on(self, model: nn.Module, part: str) -> float:
        """Of "validation" or "test"."""
        return self.measures(model, part)["loss"]

    @torch.no_grad()
    def measures(self, model: nn.Module, part: str) -> dict[str, float]:
        """Loss and accuracy on a part."""
        model.eval()
        pictures, labels = self.held_out[part]
        scores = torch.cat([model(pixel_values=some).logits for some in pictures.split(250)])
        model.train()
        return {"loss": float(F.cross_entropy(scores, labels)), "accuracy": _accuracy(scores, labels)}

    def trivial(self) -> dict[str, float]:
        """The loss of a guess, and the accuracy of a least-squares map from pixels to classes, on the test set."""
        return {"loss": math.log(10), "accuracy": ridge_accuracy(self.train, self.held_out["test"])}


TASKS: dict[str, Any] = {"characters": Characters, "pictures": Pictures}


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return float((scores.argmax(1) == labels).double().mean())


def _read(path: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first pictures of a file, in [-1, 1], and their labels."""
    rows = parquet.read_table(path).slice(0, count).to_pylist()
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    labels = torch.tensor([row["label"] for row in rows])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, labels
