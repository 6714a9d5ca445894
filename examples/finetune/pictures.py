"""Pictures: a ViT pretrained on seven classes of CIFAR-10, fine-tuned on a few pictures of the other three."""

from __future__ import annotations

import copy
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification


OTHERS = (7, 8, 9)  # horse, ship, truck
FEW = 300  # pictures to fine-tune on
VALIDATE = 1000


class Pictures:
    """Accuracy in per cent on test pictures of the three classes."""

    best = max
    targets, heads = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"], ["classifier"]
    base_steps, base_rate, steps = 1000, 1e-3, 60

    def __init__(self, data: Path, tiny: bool = False) -> None:
        self.layers, self.width = (1, 16) if tiny else (3, 64)
        self.share = 0.7 if tiny else 0.5  # of a tiny model the patches and positions alone are half
        self.file, self.count = data / "cifar10-jpeg" / "train.parquet", 400 if tiny else 30_000
        pictures, labels = read(self.file, OTHERS, 400 if tiny else 5_000)
        few = slice(min(FEW, len(labels) // 2))
        self.few = pictures[few], labels[few]
        self.parts = {"validation": (pictures[few.stop :][:VALIDATE], labels[few.stop :][:VALIDATE])}
        self.parts["test"] = read(data / "cifar10-jpeg" / "test.parquet", OTHERS, 200 if tiny else 7_000)
        self.digests = {"pictures": hashlib.sha256(self.few[0].numpy().tobytes()).hexdigest()[:12]}

    def untrained(self) -> nn.Module:
        size: Any = {"hidden_size": self.width, "intermediate_size": 4 * self.width, "num_hidden_layers": self.layers}
        shape: Any = {"image_size": 32, "patch_size": 8, "num_attention_heads": 4, "num_labels": 10 - len(OTHERS)}
        return ViTForImageClassification(ViTConfig(**size, **shape))

    def pretraining(self) -> tuple[nn.Module, Iterator[dict[str, torch.Tensor]]]:
        seven = [label for label in range(10) if label not in OTHERS]
        return self.untrained(), drawn(*read(self.file, seven, self.count), batch=64, seed=0)

    def start(self, base: nn.Module) -> nn.Module:
        net: Any = copy.deepcopy(base)
        net.num_labels = net.config.num_labels = len(OTHERS)
        net.classifier = nn.Linear(self.width, len(OTHERS))
        return net

    def batches(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        return drawn(*self.few, batch=16, seed=seed)

    @torch.no_grad()
    def figure(self, net: Any, part: str) -> float:
        pictures, labels = self.parts[part]
        found = torch.cat([net(pixel_values=some).logits.argmax(1) for some in pictures.split(250)])
        return 100 * float((found == labels).float().mean())

    def trivial(self) -> float:
        """The most frequent class of the few."""
        return 100 * float((self.parts["test"][1] == self.few[1].mode().values).float().mean())


def read(path: Path, classes: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the first `count` pictures of a file that are of these classes, in [-1, 1], and the class's number."""
    rows = [row for row in parquet.read_table(path).slice(0, count).to_pylist() if row["label"] in classes]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    labels = torch.tensor([list(classes).index(row["label"]) for row in rows])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, labels


def drawn(pictures: torch.Tensor, labels: torch.Tensor, batch: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random batches, half of them mirrored, the same for every method with this seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    while True:
        chosen = torch.randint(len(labels), (batch,), generator=generator)
        some = pictures[chosen]
        if torch.rand((), generator=generator) < 0.5:
            some = some.flip(3)
        yield {"pixel_values": some, "labels": labels[chosen]}
