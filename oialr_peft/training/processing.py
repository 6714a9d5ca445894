"""The tokenizer or processor that a model was trained with, so that it goes along where the model is written."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


_TRAINED_WITH: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def remember_processing(model: Any, processing: Any) -> None:
    """Note what the Trainer of a model reads its inputs with, if it has such a thing."""
    if processing is not None:
        _TRAINED_WITH[_base(model)] = processing


def remembered_processing(model: Any) -> Any:
    """What a Trainer read this model's inputs with; None where none did."""
    return _TRAINED_WITH.get(_base(model))


def _base(model: Any) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
