"""What is used of PEFT beyond its public surface. Seen in PEFT 0.21."""

from __future__ import annotations

from typing import Any

from peft import PeftType
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_adapters_to_merge
from peft.utils.other import AuxiliaryTrainingWrapper


__all__ = [
    "AuxiliaryTrainingWrapper",
    "BufferDict",
    "check_adapters_to_merge",
    "include_all_linear_layers",
    "is_excluded",
    "method_member",
]


def include_all_linear_layers(config: Any, model: Any) -> None:
    """Resolve `target_modules="all-linear"` in place, as PEFT's own tuners do; a new tuner has to ask for it."""
    _maybe_include_all_linear_layers(config, model)


def is_excluded(found: Any) -> bool:
    """Whether PEFT's check of a target says "excluded by name". It returns a false object of a private class."""
    return type(found).__name__ == "_ExcludedModule"


def method_member(name: str) -> PeftType:
    """The member of PeftType of this name, made on first use.

    `register_peft_method` refuses names outside its enum, and a plain string breaks `get_model_status` and
    transformers' `load_adapter`, which ask for `.value`. So a real member is entered the way EnumMeta enters its own.
    Can go once `register_peft_method` enters new names itself.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    # From Python 3.12 on members are found as class attributes; Enum's own __setattr__ forbids setting one.
    type.__setattr__(PeftType, name, member)
    return member
