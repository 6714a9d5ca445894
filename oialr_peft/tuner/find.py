"""Finding the config of an adapter in a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import WRITTEN, OIALRConfig


# What parts of a model, each a PEFT model of its own, may have differently under one updater: which layers they are,
# where they come from and, where nothing is factorised later, how they were made.
_OF_A_PART = frozenset(
    "target_modules exclude_modules modules_to_save layers_to_transform layers_pattern keep_first_layer "
    "keep_last_layer task_type base_model_name_or_path revision auto_mapping inference_mode peft_version".split()
)
_AT_THE_START = frozenset({"r", "rank_pattern", "init", "init_weights"})


def shared_fields(config: OIALRConfig | None) -> dict[str, Any]:
    """The fields that must be the same on all processes, as errors name them."""
    fields = {} if config is None else config.to_dict()
    return {  # a set is written in another order by every process
        f"OIALRConfig.{field}": sorted(value) if isinstance(value, set) else value
        for field, value in fields.items()
        if field not in WRITTEN
    }


def config_of(model: nn.Module, adapter: str) -> OIALRConfig:
    """The adapter's config, held by the model or by the part of it that has the adapter (sentence-transformers).

    Raises:
        TypeError: there is none.
        ValueError: several parts have one each, and they want different things.
    """
    held = [(getattr(module, "peft_config", None) or {}).get(adapter) for module in model.modules()]
    # A PEFT model, its tuner and what they wrap hold the same one.
    configs = list({id(config): config for config in held if isinstance(config, OIALRConfig)}.values())
    if not configs:
        raise TypeError(f"{type(model).__name__} has OIALR layers, but no OIALRConfig of the adapter {adapter!r}.")
    apart = _OF_A_PART if any(config.delay for config in configs) else _OF_A_PART | _AT_THE_START
    own = {f"OIALRConfig.{name}" for name in apart}
    fields = [{k: v for k, v in shared_fields(config).items() if k not in own} for config in configs]
    for other in fields[1:]:
        if unlike := sorted(name for name, value in other.items() if value != fields[0][name]):
            name = unlike[0]
            raise ValueError(
                f"{type(model).__name__} holds several PEFT models with an OIALR adapter {adapter!r} of unlike "
                f"configs: `{name}` is {fields[0][name]!r} in one and {other[name]!r} in another, and one updater has "
                "one schedule. Give them equal configs, or make an OIALRUpdater for each part."
            )
    return configs[0]
