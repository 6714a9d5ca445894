"""Plain transformers must not load a compressed checkpoint: it would warn and return random weights.

`transformers_weights` in config.json names the weights file, and transformers stops with the name in the message if
that is no file name. So config files of compressed models carry words there, which say what to install. Versions that
do not know the field (4.49) look up `torch_dtype` in torch and stop with the words in its place; those that know the
field take `dtype` instead. With this package imported the words are taken away when a config is read and put there
when one is written. What was read names instead the weights file that `save_compressed` noted under `files`, so that
config.json alone decides which weights are loaded.

A model that is made from such a config, and not loaded, is dense; its config is written without the record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from ..compat.patch import patch
from ..files import SHELF
from ..kinds import TakenApart
from .modules import Factored


METHOD = "oialr"
KEYS = ("transformers_weights", "torch_dtype")
_START = "these weights need oialr_peft"  # of the words of every version
WORDS = f"{_START}: install it as its README says, then `import oialr_peft` before loading"
_NAME = re.compile(rf"({SHELF}/)?model(-\d{{5}}-of-\d{{5}})?\.safetensors(\.index\.json)?")


def is_compressed(quantization_config: Any) -> bool:
    """Whether this quantisation config, an object or a dict, is that of a compressed checkpoint."""
    if isinstance(quantization_config, dict):
        return quantization_config.get("quant_method") == METHOD
    return getattr(quantization_config, "quant_method", None) == METHOD


def is_dense_twin(model: Any) -> bool:
    """Whether a model has the config of a compressed one and none of its layers: one that was made from the config."""
    loaded = getattr(model, "hf_quantizer", None) is not None
    if loaded or not is_compressed(getattr(model.config, "quantization_config", None)):
        return False
    return not any(isinstance(module, (Factored, TakenApart)) for module in model.modules())


def install_guard() -> None:
    """Teach transformers' configs and models the guard; safe to call again."""
    patch(PretrainedConfig, "from_dict", _read)
    patch(PretrainedConfig, "to_dict", _write)
    patch(PretrainedConfig, "to_diff_dict", _write_file)
    patch(PreTrainedModel, "save_pretrained", _save)


def _read(original: Callable, cls: type, config_dict: dict[str, Any], **kwargs: Any) -> Any:
    if is_compressed(config_dict.get("quantization_config")):
        config_dict = {key: value for key, value in config_dict.items() if key not in KEYS or not _is_words(value)}
        if (name := _weights_file(config_dict["quantization_config"])) is not None:
            config_dict["transformers_weights"] = name
    return original(cls, config_dict, **kwargs)


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_START)


def _write(original: Callable, config: PretrainedConfig) -> dict[str, Any]:
    output = original(config)
    if is_compressed(output.get("quantization_config")):
        output["transformers_weights"] = WORDS
        record = dict(output["quantization_config"])
        record.pop("files", None)  # of the files that were read, not of those that come with this config
        output["quantization_config"] = record
    return output


def _write_file(original: Callable, config: PretrainedConfig) -> dict[str, Any]:
    """All words. transformers reads each field that `to_dict` names here, and `torch_dtype` warns when read."""
    output = original(config)
    if is_compressed(output.get("quantization_config")):
        output |= dict.fromkeys(KEYS, WORDS)
    return output


def _save(original: Callable, model: Any, *args: Any, **kwargs: Any) -> Any:
    """PreTrainedModel.save_pretrained, whose config belongs to the user and may be that of other models too."""
    if not is_dense_twin(model):
        return original(model, *args, **kwargs)
    record = model.config.quantization_config
    del model.config.quantization_config
    try:
        return original(model, *args, **kwargs)
    finally:
        model.config.quantization_config = record


def _weights_file(record: Any) -> str | None:
    """The file with the weights, or with the index of several, that a record of compressed layers names."""
    files = record.get("files") if isinstance(record, dict) else getattr(record, "files", None)
    if not files:
        return None
    if not isinstance(files, dict) or not all(isinstance(n, str) and _NAME.fullmatch(n) for n in files):
        raise ValueError(
            f"`files` in the `quantization_config` of config.json must name files that save_compressed writes; got "
            f"{str(files)[:200]!r}. The file is damaged; save or download the model again."
        )
    return next((name for name in files if name.endswith(".index.json")), next(iter(files)))
