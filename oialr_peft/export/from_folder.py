"""A saved adapter with its base model, from its folder alone; for the commands that write models."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import peft
from transformers import AutoProcessor

from ..config import OIALRConfig


_LOADERS = {  # by task type; without one the config names the class of its base model
    None: peft.AutoPeftModel,
    "CAUSAL_LM": peft.AutoPeftModelForCausalLM,
    "SEQ_2_SEQ_LM": peft.AutoPeftModelForSeq2SeqLM,
    "SEQ_CLS": peft.AutoPeftModelForSequenceClassification,
    "TOKEN_CLS": peft.AutoPeftModelForTokenClassification,
    "QUESTION_ANS": peft.AutoPeftModelForQuestionAnswering,
    "FEATURE_EXTRACTION": peft.AutoPeftModelForFeatureExtraction,
}


def load_with_base(source: str, *, is_trainable: bool = False) -> Any:
    """The adapter at `source` (folder or Hub id) on the base model that its config names.

    Raises:
        ValueError: it is no OIALR adapter, or its config does not say what its base model is, or names one that is not
            there.
        OSError: there is no such folder.
    """
    config = peft.PeftConfig.from_pretrained(source)
    if not isinstance(config, OIALRConfig):
        raise ValueError(f"'{source}' holds an adapter of the method {config.peft_type}, not of OIALR.")
    task = None if config.task_type is None else str(getattr(config.task_type, "value", config.task_type))
    base = config.base_model_name_or_path
    if not base or (task is None and config.auto_mapping is None):
        raise ValueError(
            f"The config of '{source}' does not say what its base model is. Load the model in Python, the adapter "
            "with `PeftModel.from_pretrained(model, path)`, and write it with `save_compressed` or `merge_and_unload`."
        )
    try:
        return _LOADERS[task].from_pretrained(source, is_trainable=is_trainable)
    except (OSError, ValueError) as error:
        if os.path.isdir(base) or base not in str(error):
            raise
        raise ValueError(
            f"'{base}', which the config of '{source}' names as its base model, cannot be loaded from here: {error}. "
            "A relative path counts from the folder in which the command runs."
        ) from error


def processing_of(source: str, base: str) -> Any:
    """The tokenizer or processor beside an adapter, else that of its base model; None where neither has one."""
    for place in (source, base):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return AutoProcessor.from_pretrained(place)
    return None
