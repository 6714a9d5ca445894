"""The training tasks that whole steps are measured on: a model, a batch and a loss, all seeded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification


sys.path.insert(0, str(Path(__file__).parents[1] / "autoformer"))
from model import CHANNELS, KEPT_DENSE, TIME_FEATURES, build_config, build_model, mse_loss


@dataclass(frozen=True)
class Task:
    """`make()` returns a new model in float32, `batch` its inputs; `excluded` names the layers that stay dense."""

    make: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    loss: Callable[[Any], Tensor]
    excluded: str | None = None

    def on(self, device: str) -> Task:
        """The same with models and batch on a device."""
        batch = {name: tensor.to(device) for name, tensor in self.batch.items()}
        return replace(self, make=lambda: self.make().to(device), batch=batch)


def bert(layers: int = 4, sequences: int = 16, tokens: int = 128, dropout: float = 0.1, **sizes: Any) -> Task:
    """BERT that sorts sequences into two classes; width 768 unless `sizes` of its config say otherwise."""
    dropouts: dict[str, Any] = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(num_hidden_layers=layers, **dropouts, **sizes)
    ids = torch.randint(config.vocab_size, (sequences, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": torch.arange(sequences) % 2}
    return Task(lambda: seeded(lambda: BertForSequenceClassification(config)), batch, lambda outputs: outputs.loss)


def autoformer(windows: int = 32, dropout: float = 0.05) -> Task:
    """The paper's Autoformer: width 512, feed-forward 2048, 96 steps in, 96 out."""
    config: Any = build_config(d_model=512, ffn=2048, dropout=dropout)
    generator = torch.Generator().manual_seed(0)
    past, future = (windows, config.context_length), (windows, config.prediction_length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch = {
        "past_values": draw(*past, CHANNELS),
        "past_time_features": draw(*past, TIME_FEATURES),
        "past_observed_mask": torch.ones(*past, CHANNELS),
        "future_values": draw(*future, CHANNELS),
        "future_time_features": draw(*future, TIME_FEATURES),
    }
    target = batch["future_values"]
    return Task(
        lambda: seeded(lambda: build_model(config)),
        batch,
        lambda outputs: mse_loss(outputs, target.to(outputs.params[0].device)),
        KEPT_DENSE,
    )


LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
TINY = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "vocab_size": 100}
TASKS: dict[str, Callable[[], Task]] = {
    "bert": bert,
    "bert_large": lambda: bert(layers=24, sequences=32, tokens=512, **LARGE),
    "bert_tiny": lambda: bert(layers=1, sequences=2, tokens=16, **TINY),  # for tests
    "bert_without_dropout": lambda: bert(dropout=0.0),
    "autoformer": autoformer,
    "autoformer_without_dropout": lambda: autoformer(dropout=0.0),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that `make` returns from the same random state."""
    torch.manual_seed(0)
    return make().train()
