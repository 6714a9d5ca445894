"""Two texts with one alphabet: sources of Python's standard library to pretrain on, TinyShakespeare to fine-tune on.

In this order, because sources hold every character of plays, but plays no digits and underscores: their embeddings
would be random where only adapters train.
"""

from __future__ import annotations

import hashlib
import string
import sys
import sysconfig
from pathlib import Path

import torch


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


def sources(size: str) -> Corpus:
    """The modules at the top of the standard library, in the order of their names."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return Corpus("\n".join(file.read_text(encoding="utf-8") for file in files)[:SOURCES], size)


def plays(data: Path, size: str) -> Corpus:
    """TinyShakespeare, from the folder that holds it."""
    (file,) = (data / "tinyshakespeare").glob("*.txt")
    return Corpus(file.read_text(encoding="utf-8"), size)


def model(size: str) -> GPT:
    """The GPT of examples/quality, untrained."""
    return GPT(SIZES[size], len(ALPHABET))
