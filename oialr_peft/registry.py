"""The PEFT method "OIALR": the only file that extends the tables of PEFT and transformers."""

from __future__ import annotations

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
