"""A saved adapter with its base model, from its folder alone; for the commands that write models."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

import peft
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig

from ..config import OIALRConfig
from ..files.tensors_file import ADAPTER_WEIGHTS, read_header
from .processing import processing_of


_HEAD = re.compile(r"base_model\.model\.(decode_head\.)?(classifier|score)(\.out_proj)?\.weight")

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
    config = _config(source)
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
        return _LOADERS[task].from_pretrained(source, is_trainable=is_trainable, **_labels(source, base))
    except (OSError, HFValidationError) as error:
        if os.path.isdir(base) or not isinstance(error.__cause__ or error, HFValidationError):
            raise
        raise ValueError(
            f"'{base}', which the config of '{source}' names as its base model, is no folder and no name of a "
            "repository. A relative path counts from the folder in which the command runs."
        ) from error


def _config(source: str) -> Any:
    try:
        return peft.PeftConfig.from_pretrained(source)
    except (TypeError, AttributeError) as error:  # fields of other types than a config's
        raise ValueError(f"The adapter_config.json of '{source}' is damaged or no adapter's: {error}") from error
    except ValueError as error:
        if os.path.isfile(os.path.join(source, "adapter_config.json")):
            raise  # there is one, and what is wrong with it is said
        what = f"No adapter at '{source}'"
        if os.path.isfile(os.path.join(source, "config.json")):
            raise ValueError(f"{what}: it holds a whole model, which may be compressed already.") from error
        raise ValueError(
            f"{what}: give the folder of `save_pretrained`, a `checkpoint-N` of the Trainer's output folder, or a Hub "
            f"id. PEFT says: {error}"
        ) from error


def _labels(source: str, base: str) -> dict[str, Any]:
    """How to load the base of a classifier that has another number of labels than the head beside the adapter."""
    with contextlib.suppress(OSError, ValueError):  # what is wrong with a file is told when it is loaded
        there = os.path.isdir(source)
        file = os.path.join(source, ADAPTER_WEIGHTS) if there else hf_hub_download(source, ADAPTER_WEIGHTS)
        header, _ = read_header(file)
        heads = {entry["shape"][0] for name, entry in header.items() if _HEAD.fullmatch(name)}
        if len(heads) == 1 and heads != {AutoConfig.from_pretrained(base).num_labels}:
            return {"num_labels": heads.pop(), "ignore_mismatched_sizes": True}
    return {}


def load_to_write(source: str, output: str) -> tuple[Any, Any]:
    """The adapter at `source` with its base model, and their tokenizer or processor, for a model to go to `output`.

    Raises:
        ValueError: as `load_with_base`; `output` is a file, or the folder of the adapter, of its base model or of any
            other adapter, which the new model would replace, or would be taken for.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"A model is written into a folder, and '{output}' is a file.")
    _refuse_same(output, source)
    if os.path.exists(os.path.join(output, "adapter_config.json")):
        raise ValueError(f"'{output}' has an adapter, which would be lost beside the new model. Give another folder.")
    model = load_with_base(source)
    base = model.active_peft_config.base_model_name_or_path
    _refuse_same(output, base)
    return model, processing_of(source, base)


def _refuse_same(output: str, source: str) -> None:
    if os.path.isdir(output) and os.path.isdir(source) and os.path.samefile(output, source):
        raise ValueError(
            f"The model would take the place of what it is made from: '{source}' has the adapter or its base model. "
            "Give another folder."
        )
