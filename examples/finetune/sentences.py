"""Sentences: a BERT pretrained by masked words on all text of SST-2, fine-tuned on a thousand of its labels."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput, SequenceClassifierOutput


FEW = 1000  # labels to fine-tune on
LONGEST = 32  # tokens
SPECIAL = ["[PAD]", "[MASK]", "[UNK]"]
PAD, MASK, UNKNOWN = range(3)


class Masked(BertForMaskedLM):
    """Scores of the masked words alone: a seventh of the work of the largest layer."""

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any) -> Any:  # type: ignore[override]
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        chosen = labels >= 0
        scores = self.cls(hidden[chosen])
        return MaskedLMOutput(loss=F.cross_entropy(scores, labels[chosen]), logits=scores)  # type: ignore[arg-type]


class Classifier(nn.Module):
    """An encoder, the mean over its tokens, and a head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(width, 2)

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any = None) -> Any:
        hidden = self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        shares = attention_mask / attention_mask.sum(1, keepdim=True)
        scores = self.classifier((hidden * shares[..., None]).sum(1))
        return SequenceClassifierOutput(None if labels is None else F.cross_entropy(scores, labels), scores)


class Sentences:
    """Accuracy in per cent on SST-2's test sentences."""

    best = max
    targets, heads = ["query", "key", "value", "dense"], ["classifier"]
    share = 0.86  # half of what the layers hold; embeddings are 72 %
    base_steps, base_rate, steps = 300, 1e-3, 80

    def __init__(self, data: Path, tiny: bool = False) -> None:
        self.layers, self.width, words = (1, 16, 100) if tiny else (2, 64, 4000)
        parts = {part: read(data / "SST2" / f"{part}.tsv") for part in ("train", "dev", "test")}
        text = [sentence for sentences, _ in parts.values() for sentence in sentences]
        tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[misc]
        tokenizer.train_from_iterator(text, trainers.WordLevelTrainer(vocab_size=words, special_tokens=SPECIAL))  # type: ignore[call-arg]
        tokenizer.enable_padding(pad_id=PAD)
        tokenizer.enable_truncation(LONGEST)
        self.tokenizer, self.text, self.words = tokenizer, text, tokenizer.get_vocab_size()
        self.few = parts["train"][0][:FEW], parts["train"][1][:FEW]
        self.parts = {"validation": parts["dev"], "test": parts["test"]}
        self.digests = {"text": hashlib.sha256("\n".join(text).encode()).hexdigest()[:12]}

    def untrained(self) -> nn.Module:
        size: Any = {"hidden_size": self.width, "intermediate_size": 4 * self.width, "num_hidden_layers": self.layers}
        shape: Any = {"vocab_size": self.words, "max_position_embeddings": LONGEST, "num_attention_heads": 4}
        return Masked(BertConfig(**size, **shape, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))

    def pretraining(self) -> tuple[nn.Module, Iterator[dict[str, torch.Tensor]]]:
        """With word vectors of the same text for a start, which is too short to learn them by masking in minutes."""
        base: Any = self.untrained()
        words = base.bert.embeddings.word_embeddings.weight
        words.data[len(SPECIAL) :] = self.vectors()[len(SPECIAL) :]
        return base, self.masked(0)

    def vectors(self) -> torch.Tensor:
        """Positive pointwise mutual information of words within sentences, by SVD, of size 0.05. (words, width)"""
        held = torch.zeros(len(self.text), self.words)
        for row, ids in zip(held, self.encoded(self.text)["input_ids"], strict=True):
            row[ids] = 1.0
        held[:, : len(SPECIAL)] = 0.0
        together = (held.mT @ held).fill_diagonal_(0.0) / len(self.text)
        share = together.sum(0) / together.sum().sqrt()
        mutual = (together / (share[:, None] * share)).log().nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0)
        u, s, _ = torch.svd_lowrank(mutual, self.width, niter=4)
        return u * s.sqrt() * (0.05 / (u * s.sqrt()).std())

    def masked(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """A seventh of the tokens are asked for, all of them hidden."""
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            chosen = torch.randint(len(self.text), (64,), generator=generator).tolist()
            batch = self.encoded([self.text[i] for i in chosen])
            asked = (torch.rand(batch["input_ids"].shape, generator=generator) < 0.15) & (batch["attention_mask"] > 0)
            labels = torch.where(asked, batch["input_ids"], -100)
            yield {**batch, "input_ids": torch.where(asked, MASK, batch["input_ids"]), "labels": labels}

    def start(self, base: nn.Module) -> nn.Module:
        return Classifier(copy.deepcopy(base.bert), self.width)  # type: ignore[arg-type]

    def batches(self, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(1000 + seed)
        sentences, labels = self.few
        while True:
            chosen = torch.randint(len(labels), (16,), generator=generator).tolist()
            batch = self.encoded([sentences[i] for i in chosen])
            yield {**batch, "labels": torch.tensor([labels[i] for i in chosen])}

    @torch.no_grad()
    def figure(self, net: Any, part: str) -> float:
        pairs = sorted(zip(*self.parts[part], strict=True), key=lambda pair: pair[0].count(" "))  # little padding
        right = 0
        for i in range(0, len(pairs), 50):
            sentences, labels = zip(*pairs[i : i + 50], strict=True)
            right += int((net(**self.encoded(list(sentences))).logits.argmax(1) == torch.tensor(labels)).sum())
        return 100 * right / len(pairs)

    def trivial(self) -> float:
        """The most frequent label of the thousand."""
        most = int(2 * sum(self.few[1]) > len(self.few[1]))
        return 100 * sum(label == most for label in self.parts["test"][1]) / len(self.parts["test"][1])

    def encoded(self, sentences: list[str]) -> dict[str, torch.Tensor]:
        found = self.tokenizer.encode_batch(sentences)
        names = {"input_ids": "ids", "attention_mask": "attention_mask"}
        return {name: torch.tensor([getattr(one, field) for one in found]) for name, field in names.items()}


def read(path: Path) -> tuple[list[str], list[int]]:
    """Sentences and labels of a file."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [sentence for sentence, _ in rows], [int(label) for _, label in rows]
