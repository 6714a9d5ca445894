"""Three small models and their data, for one core and a few minutes each."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PatchTSTConfig,
    PatchTSTForPrediction,
    ViTConfig,
    ViTForImageClassification,
)


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))
from vit import load_split, normalised


@dataclass(frozen=True)
class Task:
    """An untrained model, its training data, and the learning rate of Adam that suits it."""

    name: str
    make: Callable[[], nn.Module]
    data: Dataset[dict[str, Tensor]]
    rate: float


class Windows(Dataset):
    """Windows of a long tensor, cut at every step; `item` makes the model's inputs of one."""

    def __init__(self, values: Tensor, length: int, item: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self.values, self.length, self.item = values, length, item

    def __len__(self) -> int:
        return len(self.values) - self.length + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.item(self.values[index : index + self.length])


class Images(Dataset):
    """Images and their classes."""

    def __init__(self, images: Tensor, classes: Tensor) -> None:
        self.images, self.classes = images, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[index], "labels": self.classes[index]}


def gpt(data: Path) -> Task:
    """A GPT-2 of three layers of width 128 on the characters of TinyShakespeare."""
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    known = {character: code for code, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[character] for character in text])
    config = GPT2Config(vocab_size=len(known), n_positions=64, n_embd=128, n_layer=3, n_head=4)
    windows = Windows(codes, 64, lambda window: {"input_ids": window, "labels": window})
    return Task("GPT-2 on TinyShakespeare", lambda: GPT2LMHeadModel(config), windows, 1e-3)


def vit(data: Path) -> Task:
    """A ViT of four layers of width 96, patches of 8, on a part of CIFAR-10."""
    images, classes = load_split(data / "cifar10-jpeg", "train", "cpu")
    sizes: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    sizes |= {"image_size": 32, "patch_size": 8, "num_labels": 10, "num_attention_heads": 4}
    config = ViTConfig(**sizes)
    return Task(
        "ViT on CIFAR-10", lambda: ViTForImageClassification(config), Images(normalised(images), classes), 5e-4
    )


def patchtst(data: Path) -> Task:
    """A PatchTST of three layers of width 64, 336 hours in and 96 out, on ETTh1."""
    with gzip.open(data / "ETT-small" / "ETTh1.csv.gz") as file:
        frame = pandas.read_csv(file)
    values = torch.tensor(frame.drop(columns="date").to_numpy()[:8640], dtype=torch.float32)
    values = (values - values.mean(0)) / values.std(0)
    sizes: dict[str, Any] = {"d_model": 64, "ffn_dim": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"context_length": 336, "prediction_length": 96, "patch_length": 16, "patch_stride": 8}
    config = PatchTSTConfig(num_input_channels=7, scaling="std", **sizes)
    windows = Windows(values, 432, lambda window: {"past_values": window[:336], "future_values": window[336:]})
    return Task("PatchTST on ETTh1", lambda: PatchTSTForPrediction(config), windows, 1e-3)


TASKS: dict[str, Callable[[Path], Task]] = {"gpt": gpt, "vit": vit, "patchtst": patchtst}
