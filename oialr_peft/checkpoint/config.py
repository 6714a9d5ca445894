"""adapter_config.json as it is read: which of two saves it belongs to, its types, and no regex of a stranger."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft.utils.other import get_pattern_key
from peft.utils.peft_types import PeftType

from ..config import OIALRConfig
from ..errors import tell
from ..files import ADAPTER_WEIGHTS, CONFIG_KEY, read_header
from ..kinds import PART_NAMES
from .rest import PARTS, PEFT_PREFIX


HASH = "tensors_sha256"  # in adapter_config.json: of the weights file that was saved with it
BEFORE = {"lr_scale": "none", "activation_aware": False}  # as adapters were trained before there were these fields
_NAMES = "a list of names"
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "target_modules": ((list, str), f"{_NAMES}, or a regex"),
    "exclude_modules": ((list, str), f"{_NAMES}, or a regex"),
    "modules_to_save": ((list,), _NAMES),
    "layers_to_transform": ((list, int), "layer indices"),
    "layers_pattern": ((list, str), f"{_NAMES}"),
    "rank_pattern": ((dict,), "an object {name: rank}"),
    "ranks": ((dict,), "an object {layer name: rank, or null where dense}"),
    "one_sided": ((dict,), "an object {layer name: left or right}"),
    "format_version": ((int,), "a whole number"),
    "base_model_name_or_path": ((str,), "a name"),
    "revision": ((str,), "a name"),
    "task_type": ((str,), "a name"),
    "auto_mapping": ((dict,), "an object"),
    "inference_mode": ((bool,), "true or false"),
    HASH: ((str,), "a SHA-256"),
}


def read_config(original: Callable[..., Any], path: str, **kwargs: Any) -> Any:
    """PeftConfig.from_json_file: what `original` reads, checked where it is an OIALR adapter's.

    Where the weights file beside it was saved with another config (a save was killed between the two), that config,
    which the file carries in its metadata, is the one that counts.

    Raises:
        ValueError, TypeError: naming the file, the field, its rule and the value.
    """
    try:
        found = original(path, **kwargs)
    except (ValueError, TypeError, RecursionError) as error:
        if _is_ours(path):
            raise ValueError(f"'{path}' is damaged ({error}). Save or download the adapter again.") from error
        raise
    kind = found.get("peft_type") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in PeftType.__members__:
        if _is_ours(path):
            raise ValueError(f"'{path}' is damaged: its `peft_type` is {kind!r}. Save or download the adapter again.")
        return found
    if kind != "OIALR":
        return found
    weights = Path(path).with_name(ADAPTER_WEIGHTS)
    header, metadata = read_header(weights) if weights.is_file() else ({}, {})
    found = _of_the_same_save(found, metadata, weights)
    try:
        check_types(found)
        found.pop(HASH, None)
        for name, value in BEFORE.items():
            found.setdefault(name, value)
        _take_ranks(found, header)
        found = _without_regexes(found)
        OIALRConfig(**{name: value for name, value in found.items() if name in OIALRConfig.__dataclass_fields__})
    except (ValueError, TypeError) as error:
        raise type(error)(f"'{path}': {error}") from error
    return found


def _is_ours(path: str) -> bool:
    """Whether a config that cannot be read was once OIALR's, by its words or by the weights beside it."""
    text = Path(path).read_bytes()
    if b'"OIALR"' in text or b'"sigma_cutoff"' in text:
        return True
    weights = Path(path).with_name(ADAPTER_WEIGHTS)
    try:
        return weights.is_file() and CONFIG_KEY in read_header(weights)[1]
    except ValueError:
        return False


def saved_config(metadata: dict[str, str], weights: Path) -> dict[str, Any] | None:
    """The config that a weights file carries in its metadata; None for files of earlier versions and other tools."""
    if CONFIG_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[CONFIG_KEY])
        if not isinstance(config[HASH], str) or config["peft_type"] != "OIALR":
            raise TypeError("it is another method's")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"'{weights}' is damaged: its metadata cannot be read. Save or download it again.") from error
    return config


def _of_the_same_save(found: dict[str, Any], metadata: dict[str, str], weights: Path) -> dict[str, Any]:
    saved = saved_config(metadata, weights)
    return found if saved is None or saved[HASH] == found.get(HASH) else saved


def check_types(found: dict[str, Any]) -> None:
    """Raise TypeError or ValueError, naming the field, for a config whose fields are of other types than OIALR's."""
    for name, (types, rule) in _TYPES.items():
        value = found.get(name)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise TypeError(f"`{name}` must be {rule}; got {str(value)[:200]!r}.")
        if rule.startswith(_NAMES) and isinstance(value, list) and not all(isinstance(n, str) for n in value):
            raise TypeError(f"`{name}` must be {rule}; got {str(value)[:200]!r}.")
    if wrong := [i for i in _listed(found.get("layers_to_transform")) if type(i) is not int]:
        raise TypeError(f"`layers_to_transform` must be layer indices; got {wrong[0]!r}.")
    for name, rank in (found.get("ranks") or {}).items():
        if rank is not None and (type(rank) is not int or rank < 1):
            raise ValueError(f"`ranks` must hold whole numbers from 1, or null if dense; got {rank!r} for {name!r}.")
    for name, side in (found.get("one_sided") or {}).items():
        if side not in ("left", "right"):
            raise ValueError(f"`one_sided` must hold 'left' or 'right'; got {side!r} for {name!r}.")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _take_ranks(found: dict[str, Any], header: dict[str, dict[str, Any]]) -> None:
    """The file's layers and ranks in the place of those that the config names, which must be the same layers.

    Raises:
        ValueError: naming the first layer that only one of the two has.
    """
    names = {key.removeprefix(PEFT_PREFIX): entry["shape"] for key, entry in header.items()}
    layers = {key.rpartition(".")[0] for key in names if key.rpartition(".")[2] in PARTS}
    if not layers:
        return
    if found.get("ranks") is not None and (odd := sorted(layers ^ found["ranks"].keys())):
        where = f"the weights file lacks the layer {odd[0]!r}, which `ranks` names"
        if odd[0] in layers:
            where = f"the weights file has tensors of the layer {odd[0]!r}, which `ranks` does not name"
        raise ValueError(
            f"{where} ({len(odd)} such layers). One of the two files is incomplete, damaged or of another save; save "
            "or download both again."
        )
    shapes = {name: names.get(f"{name}.oialr_sigma") for name in layers}
    found["ranks"] = {name: min(shape[-2:]) if shape else None for name, shape in sorted(shapes.items())}


def _without_regexes(found: dict[str, Any]) -> dict[str, Any]:
    """A saved adapter has its layers in `ranks` by exact names: no pattern needs to be run, nor is any."""
    if (ranks := found.get("ranks")) is None:
        return found
    found = dict(found)
    if isinstance(found.get("target_modules"), str):
        found["target_modules"] = sorted(ranks)
    if isinstance(found.get("exclude_modules"), str):
        found["exclude_modules"] = None
    if found.get("layers_pattern"):
        found["layers_pattern"] = found["layers_to_transform"] = None
    pattern = found.get("rank_pattern") or {}
    regexes = [key for key in pattern if not _is_plain(key)]
    found["rank_pattern"] = {key: rank for key, rank in pattern.items() if key not in regexes}
    if regexes and None in ranks.values():
        tell(
            f"The saved adapter has a regex in `rank_pattern` ({regexes[0][:100]!r}) and layers that are not "
            "factorised yet. A saved adapter's regexes are not run: set `rank_pattern` on the loaded config."
        )
    return found


def _is_plain(pattern: str) -> bool:
    """Whether a pattern is a name or the end of one."""
    return re.fullmatch(r"[\w.-]+", pattern) is not None


def plain_pattern(config: dict[str, Any]) -> dict[str, Any]:
    """`rank_pattern` of a config about to be saved, its regexes replaced by the names of dense layers they match."""
    pattern = config.get("rank_pattern") or {}
    plain = {key: rank for key, rank in pattern.items() if _is_plain(key)}
    for name, rank in (config.get("ranks") or {}).items():
        parent, _, last = name.rpartition(".")
        candidates = (name, *([parent] if last in PART_NAMES else [])) if rank is None else ()
        keys = [key for candidate in candidates if (key := get_pattern_key(list(pattern), candidate)) in pattern]
        if keys and not _is_plain(keys[0]):
            plain = {name: pattern[keys[0]], **plain}
    return plain
