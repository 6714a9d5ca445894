"""The rules for the fields of OIALRConfig: each error names the field, the rule and the value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .config import OIALRConfig


def check(config: OIALRConfig) -> None:
    """Raise for a value that is not of its field's kind, out of its range, or without effect.

    Raises:
        ValueError, TypeError: naming the field, its rule and the value received.
    """
    _check_ranks(config)
    _check_counts(config)
    _check_choices(config)
    _check_bases(config)
    _check_rank_rule(config)
    _check_residual(config)
    if config.target_size is not None:
        _check_target(config)


def _check_ranks(config: OIALRConfig) -> None:
    for name, rank in {"r": config.r, **{f"rank_pattern[{k!r}]": v for k, v in config.rank_pattern.items()}}.items():
        if rank is None:
            continue
        if isinstance(rank, bool) or not isinstance(rank, (int, float)):
            raise TypeError(f"`{name}` must be None, an int, or a float share of min(out, in); got {rank!r}.")
        if isinstance(rank, float) and not 0 < rank <= 1:
            raise ValueError(f"`{name}` given as a float is a share and must be in (0, 1]; got {rank}.")
        if isinstance(rank, int) and rank < 1:
            raise ValueError(f"`{name}` must be at least 1; got {rank}. Use None for the full rank.")


def _check_counts(config: OIALRConfig) -> None:
    for name, least in (("delay", 0), ("update_interval", 1), ("freeze_bases", 1)):
        value = getattr(config, name)
        if (name, value) == ("delay", "auto") or (value is None and name != "delay"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            rule = "a number of optimizer steps or a share of the run" + (", or 'auto'" if name == "delay" else "")
            raise TypeError(f"`{name}` must be {rule}; got {value!r}.")
        whole = name == "update_interval"
        if isinstance(value, float) and not (0 < value < 1 or (whole and value == 1)):
            interval = "(0, 1]" if whole else "(0, 1)"
            raise ValueError(f"`{name}` as a float is a share of the run and must be in {interval}; got {value}.")
        if isinstance(value, int) and value < least:
            raise ValueError(f"`{name}` must be at least {least} optimizer steps; got {value}.")
    if isinstance(config.rank_multiple, bool) or not isinstance(config.rank_multiple, int):
        raise TypeError(f"`rank_multiple` counts singular values and must be an int; got {config.rank_multiple!r}.")
    if config.rank_multiple < 1:
        raise ValueError(f"`rank_multiple` must be at least 1 singular values; got {config.rank_multiple}.")


def _check_choices(config: OIALRConfig) -> None:
    ranges = {  # field: (interval as shown, test)
        "sigma_cutoff": ("[0, 1)", lambda v: 0 <= v < 1),
        "layer_step": ("(0, 1]", lambda v: 0 < v <= 1),
        "max_cut": ("[0, 1]", lambda v: 0 <= v <= 1),
        "min_rank": ("[0, 1]", lambda v: 0 <= v <= 1),
    }
    for name, (interval, inside) in ranges.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"`{name}` must be a number in {interval}; got {value!r}.")
        if not (math.isfinite(value) and inside(value)):
            raise ValueError(f"`{name}` must be in {interval}; got {value}.")
    choices = {
        "moments": ("rotate", "slice", "reset"),
        "init": ("svd", "lowrank"),
        "bases": ("frozen", "longer"),
        "rank_rule": ("relative", "energy", "optimal"),
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(config, name)!r}.")
    flags = ("init_weights", "keep_first_layer", "keep_last_layer", "train_rest", "residual", "save_bases")
    for name in (*flags, "activation_aware", "embeddings"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"`{name}` must be True or False; got {getattr(config, name)!r}.")
    if config.keep_base_weights not in (None, True, False):
        raise TypeError(f"`keep_base_weights` must be None, True or False; got {config.keep_base_weights!r}.")
    if config.layers_pattern and config.layers_to_transform is None:
        raise ValueError("`layers_pattern` has no effect without `layers_to_transform`; set both or neither.")
    if isinstance(config.target_modules, str) and config.layers_to_transform is not None:
        raise ValueError("`layers_to_transform` has no effect when `target_modules` is a regex; put it in the regex.")


def _check_bases(config: OIALRConfig) -> None:
    if config.bases == "longer" and config.moments == "slice":
        raise ValueError(
            "`moments='slice'` is a rule for frozen bases; with bases='longer', the default of `target_size`, use "
            "moments='rotate', or set bases='frozen'."
        )
    if config.freeze_bases is not None and config.bases == "frozen":
        raise ValueError("`freeze_bases` has no effect with bases='frozen'; set bases='longer', or leave it out.")
    scale = config.lr_scale
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not (scale in ("match", "none") if isinstance(scale, str) else number and 0 < scale < math.inf):
        raise ValueError(f"`lr_scale` must be 'match', 'none' or a positive number; got {scale!r}.")


def _check_target(config: OIALRConfig) -> None:
    if isinstance(config.target_size, bool) or not isinstance(config.target_size, float):
        raise TypeError(
            f"`target_size` must be a share of the dense parameters, a float in (0, 1); got {config.target_size!r}."
        )
    if not 0 < config.target_size < 1:
        raise ValueError(f"`target_size` must be in (0, 1); got {config.target_size}.")
    for name, value in given(config, "rank_rule", "sigma_cutoff", "layer_step", "max_cut"):
        raise ValueError(
            f"`{name}={value!r}` has no effect with `target_size`, which chooses the ranks of all layers together "
            f"from the size. Leave `{name}` out, or leave `target_size` out."
        )


def _check_rank_rule(config: OIALRConfig) -> None:
    for name, value in given(config, "sigma_cutoff", "max_cut") if config.rank_rule == "optimal" else ():
        raise ValueError(
            f"`{name}={value!r}` has no effect with rank_rule='optimal', which tells noise by the median and drops "
            f"all of it at once. Leave `{name}` out, or use rank_rule='relative' or 'energy'."
        )


def given(config: OIALRConfig, *names: str) -> list[tuple[str, object]]:
    """Of these fields those that are not at their defaults, with their values."""
    return [(name, value) for name in names if (value := getattr(config, name)) != getattr(type(config), name)]


def _check_residual(config: OIALRConfig) -> None:
    if not config.residual:
        if not config.save_bases:
            raise ValueError(
                "`save_bases=False` needs `residual=True`: otherwise bases turn, and no base model has them."
            )
        return
    for name, allowed, reason in (
        ("delay", (0,), "the bases are those of the base model, from the first step on"),
        ("train_rest", (False,), "the base model stays as it is"),
        ("keep_base_weights", (None, True), "the base weight is the residual"),
        ("target_size", (None,), "the model stays as large as it is"),
        ("bases", ("frozen",), "both bases stay"),
    ):
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(f"`{name}={value!r}` with `residual=True`: {reason}. Leave out one of the two.")
