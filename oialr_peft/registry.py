"""The PEFT method "OIALR": the only file that extends the tables of PEFT and transformers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from peft.utils import register_peft_method

from .compat.late import once_imported
from .compat.patch import patch
from .compat.peft_ import method_member


_NAME = "OIALR"


def register() -> None:
    """Enter OIALRConfig and OIALRModel into PEFT's tables. Safe to call again.

    Raises:
        RuntimeError: another package has registered a PEFT method of the same name.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from .config import OIALRConfig
    from .tuner.model import OIALRModel

    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(method_member(_NAME))
    if present is None:
        register_peft_method(name=_NAME.lower(), config_cls=OIALRConfig, model_cls=OIALRModel)
    elif present is not OIALRConfig:
        raise RuntimeError(
            f"A PEFT method named {_NAME} is already registered with the config {present.__module__}."
            f"{present.__qualname__}. Import only one of the two packages."
        )
    _write_our_cards()
    _save_and_load_safely()
    _read_compressed_checkpoints()
    _put_lora_on_compressed_layers()
    _keep_others_off_replaced_layers()


def _read_compressed_checkpoints() -> None:
    """Enter the layers of `save_compressed` as a method of quantisation, which is transformers' way to swap layers."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    from .export.guard import METHOD, install_guard
    from .export.quantizer import CompressedQuantizer
    from .export.record import CompressedConfig

    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = CompressedConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = CompressedQuantizer
    install_guard()
    once_imported("diffusers.quantizers.auto", _read_compressed_diffusers)


def _read_compressed_diffusers(tables: Any) -> None:
    """The same in diffusers, whose way to swap layers is a copy of transformers'."""
    from .export.diffusers_quantizer import CompressedDiffusersQuantizer, DiffusersRecord
    from .export.guard import METHOD

    tables.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = DiffusersRecord
    tables.AUTO_QUANTIZER_MAPPING[METHOD] = CompressedDiffusersQuantizer


def _put_lora_on_compressed_layers() -> None:
    """Have LoRA take a two-factor layer under the layer's own name, as it takes the dense one."""
    from peft.tuners.lora import model as lora

    patch(lora, "dispatch_default", _lora_layer)


def _lora_layer(original: Callable, target: Any, *args, **kwargs) -> Any:
    """dispatch_default, which chooses LoRA's layer for a layer of the model."""
    from .export.lora_layer import lora_layer

    return lora_layer(target, *args, **kwargs) or original(target, *args, **kwargs)


def _keep_others_off_replaced_layers() -> None:
    """Have every other tuner refuse a layer whose weight an OIALR adapter replaces: none asks what it wraps."""
    from peft.tuners.tuners_utils import BaseTuner

    patch(BaseTuner, "inject_adapter", _inject)


def _inject(original: Callable, tuner: Any, model: Any, adapter_name: str, *args, **kwargs) -> None:
    """BaseTuner.inject_adapter."""
    from .tuner.rules import refuse_on_replaced

    original(tuner, model, adapter_name, *args, **kwargs)
    method = tuner.peft_config[adapter_name].peft_type
    refuse_on_replaced(model, getattr(method, "value", method))


def _write_our_cards() -> None:
    """Have PeftModel write our card where the active adapter is OIALR's: PEFT asks a tuner nothing about cards.

    A method that PEFT no longer has is passed over, so that training and saving go on; tests/cards/test_hook.py tells.
    """
    from peft import PeftModel

    patch(PeftModel, "create_or_update_model_card", _for_oialr(_replace_card))
    patch(PeftModel, "_upload_modified_files", _for_oialr(_card_before_upload))


def _save_and_load_safely() -> None:
    """Have PEFT and transformers write an OIALR adapter whole or not at all, and look at its files before loading."""
    from peft import PeftModel
    from peft.config import PeftConfigMixin
    from transformers.integrations.peft import PeftAdapterMixin

    patch(PeftModel, "save_pretrained", _for_oialr(_save, held=True))
    patch(PeftModel, "load_adapter", _load_adapter)
    patch(PeftModel, "from_pretrained", _load_peft_model)
    patch(PeftAdapterMixin, "load_adapter", _load_into_transformers)
    patch(PeftConfigMixin, "from_json_file", _read_config)


def _load_adapter(*args, **kwargs) -> Any:
    """PeftModel.load_adapter."""
    from .checkpoint.adapter import load_adapter

    return load_adapter(*args, **kwargs)


def _read_config(read: Callable, cls: type, path: Any, **kwargs) -> Any:
    """PeftConfigMixin.from_json_file."""
    from .checkpoint.config import read_config

    return read_config(functools.partial(read, cls), path, **kwargs)


def _save(original: Callable, model: Any, *args, **kwargs) -> None:
    """PeftModel.save_pretrained: the weights, then the card."""
    from .checkpoint.adapter import save_adapter

    if (folder := save_adapter(original, model, *args, **kwargs)) is not None:
        model.create_or_update_model_card(folder)


def _load_peft_model(original: Callable, cls: type, model: Any, model_id: Any, *args, **kwargs) -> Any:
    """PeftModel.from_pretrained, which makes layers from the config before it reads the weights."""
    from .checkpoint.adapter import check_saved

    check_saved(model_id, **kwargs)
    return original(cls, model, model_id, *args, **kwargs)


def _load_into_transformers(original: Callable, model: Any, peft_model_id: Any = None, *args, **kwargs) -> Any:
    """load_adapter of transformers' models, which asks no tuner about what it loads."""
    from .checkpoint.adapter import check_saved

    if peft_model_id is not None:
        check_saved(peft_model_id, values=True, **(kwargs.get("adapter_kwargs") or {}))
    return original(model, peft_model_id, *args, **kwargs)


def _for_oialr(hook: Callable, held: bool = False) -> Callable:
    """A hook that acts for models whose active adapter is OIALR's; with `held` for those that have one at all."""

    def act(original: Callable, model: Any, *args, **kwargs) -> Any:
        from .config import OIALRConfig

        names = model.peft_config if held else model.active_adapters
        if any(isinstance(model.peft_config.get(name), OIALRConfig) for name in names):
            return hook(original, model, *args, **kwargs)
        return original(model, *args, **kwargs)

    return act


def _replace_card(original: Callable, model: Any, output_dir: str) -> None:
    """PeftModel.create_or_update_model_card, which runs in every save."""
    from .cards import write_card  # on first use, so that `import oialr_peft` loads neither rich nor jinja2
    from .files import is_draft

    if not is_draft(output_dir):  # the card comes once the weights are in place
        write_card(model, output_dir)


def _card_before_upload(original: Callable, model: Any, working_dir: str, repo_id: str, *args, **kwargs) -> Any:
    """PeftModel._upload_modified_files, the end of `push_to_hub`.

    transformers has just put a blank form, or the README from the repository, over the card of the save.
    """
    from .cards import write_card

    write_card(model, working_dir, repo_id=repo_id)
    try:
        return original(model, working_dir, repo_id, *args, **kwargs)
    except Exception as error:  # "Server disconnected" does not say from what; Python 3.10 has no notes
        if sys.version_info >= (3, 11):
            error.add_note(f"The push to '{repo_id}' failed. The model is unchanged; push again.")
        raise
