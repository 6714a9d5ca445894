"""The config as the user gave it. PEFT writes the names of layers into the object, saving the ranks."""

from __future__ import annotations

import copy
from typing import Any, cast

from ..config import WRITTEN, OIALRConfig
from ..weights import Weights


def as_given(config: OIALRConfig, copied: Weights) -> OIALRConfig:
    """The object itself for its first adapter, as PEFT does; for a later one a copy without what was written into it.

    One for an adapter that is to be a copy of others' weights has their ranks. One that a file was loaded with, for
    inference, stays itself too: PEFT promises that.
    """
    used: Any = getattr(config, "used", None)
    if used is not None and not config.inference_mode:
        given, chosen = used
        told = config.target_modules
        config = copy.copy(config)
        for name, value in given.items():
            setattr(config, name, value)
        if told != chosen:  # the user has set others since
            config.target_modules = told
    cast(Any, config).used = {name: getattr(config, name) for name in ("target_modules", *WRITTEN)}, None
    if copied:
        config.ranks = {name: weight.rank for name, weight in copied.items()}
    return config


def note_chosen(config: OIALRConfig) -> None:
    """Remember what stands in the config once the layers are chosen."""
    cast(Any, config).used = cast(Any, config).used[0], config.target_modules
