"""The PEFT method "OIALR": the only file that extends the tables of PEFT and transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable

from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


_NAME = "OIALR"


def _enum_member() -> PeftType:
    """The member PeftType.OIALR, made on first use.

    `register_peft_method` refuses names outside its enum, and a plain string breaks `get_model_status` and
    transformers' `load_adapter`, which ask for `.value`. So a real member is entered the way EnumMeta enters its own.
    """
    if _NAME in PeftType.__members__:
        return PeftType[_NAME]
    member = str.__new__(PeftType, _NAME)
    member._name_ = _NAME
    member._value_ = _NAME
    PeftType._member_names_.append(_NAME)
    PeftType._member_map_[_NAME] = member
    PeftType._value2member_map_[_NAME] = member
    # From Python 3.12 on members are found as class attributes; Enum's own __setattr__ forbids setting one.
    type.__setattr__(PeftType, _NAME, member)
    return member


def register() -> None:
    """Enter OIALRConfig and OIALRModel into PEFT's tables. Safe to call again.

    Raises:
        RuntimeError: another package has registered a PEFT method of the same name.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from .config import OIALRConfig
    from .model import OIALRModel

    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(_enum_member())
    if present is None:
        register_peft_method(name=_NAME.lower(), config_cls=OIALRConfig, model_cls=OIALRModel)
    elif present is not OIALRConfig:
        raise RuntimeError(
            f"A PEFT method named {_NAME} is already registered with the config {present.__module__}."
            f"{present.__qualname__}. Import only one of the two packages."
        )
    _write_our_cards()


def _write_our_cards() -> None:
    """Have PeftModel write our card where the active adapter is OIALR's: PEFT asks a tuner nothing about cards.

    `create_or_update_model_card` runs in every save. `_upload_modified_files` ends `push_to_hub`, which has just put a
    blank form, or the README of the repository, over the saved one. A method that PEFT no longer has is passed over,
    so that training and saving go on; tests/cards/test_hook.py tells us.
    """
    from peft import PeftModel

    from .cards import write_card
    from .config import OIALRConfig

    def is_ours(model: PeftModel) -> bool:
        return any(isinstance(model.peft_config.get(name), OIALRConfig) for name in model.active_adapters)

    def replace_card(original, self, output_dir):
        return write_card(self, output_dir) if is_ours(self) else original(self, output_dir)

    def card_before_upload(original, self, working_dir, repo_id, *args, **kwargs):
        if is_ours(self):
            write_card(self, working_dir, repo_id=repo_id)
        return original(self, working_dir, repo_id, *args, **kwargs)

    hooks = {"create_or_update_model_card": replace_card, "_upload_modified_files": card_before_upload}
    for name, hook in hooks.items():
        original = getattr(PeftModel, name, None)
        if original is not None and not hasattr(original, "oialr_hook"):
            setattr(PeftModel, name, _hooked(original, hook))


def _hooked(original: Callable, hook: Callable) -> Callable:
    @functools.wraps(original)
    def method(self, *args, **kwargs):
        return hook(original, self, *args, **kwargs)

    method.oialr_hook = True  # type: ignore[attr-defined]
    return method
