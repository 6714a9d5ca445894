"""What a checkpoint holds of the updater, checked before anything is taken from it."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from typing import Any, cast

from ..linalg import PROBES


_LARGEST = 1 << 53  # steps; beyond it JSON of other programs loses digits


def checked_state(state: Any, full_ranks: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """(optimizer steps, ranks of sharded layers by name) of an updater's `state_dict`.

    Args:
        full_ranks: {layer: min(out, in)}. Ranks of other layers are left out.

    Raises:
        ValueError: naming the entry, its rule and the value.
    """
    if not isinstance(state, Mapping) or not _is_count(steps := state.get("steps"), 0, _LARGEST):
        raise ValueError(_damaged("`steps` must be a whole number of optimizer steps", state))
    if not _is_count(pending := state.get("pending", 0), 0, _LARGEST):
        raise ValueError(_damaged("`pending` must be a whole number of optimizer steps", pending))
    ranks = state.get("live_ranks", {})
    if not isinstance(ranks, Mapping):
        raise ValueError(_damaged("`live_ranks` must be an object {layer name: rank}", ranks))
    taken = {name: rank for name, rank in ranks.items() if name in full_ranks}
    for name, rank in taken.items():
        if not _is_count(rank, 1, full_ranks[name]):
            rule = f"the rank of '{name}' in `live_ranks` must be from 1 to min(out, in) = {full_ranks[name]}"
            raise ValueError(_damaged(rule, rank))
    return cast(int, steps), taken


def checked_scales(state: Mapping[str, Any]) -> dict[str, list[float]]:
    """{layer: [start, steps taken]} of the steps whose scale was on its way.

    Raises:
        ValueError: naming the entry, its rule and the value.
    """
    scales = _by_layer(state, "step_scales", "[scale, steps]")
    for name, entry in scales.items():
        whole = isinstance(entry, list) and len(entry) == 2 and all(type(n) in (int, float) for n in entry)
        if not whole or not 0 < entry[0] < math.inf or not 0 <= entry[1] < math.inf:
            raise ValueError(_damaged(f"`step_scales` of '{name}' must be [scale above 0, steps taken]", entry))
    return dict(scales)


def checked_settling(state: Mapping[str, Any], names: Container[str]) -> dict[str, dict[str, Any]]:
    """{layer: {"sketch": of its basis, "stabilities": so far}} of layers whose bases were settling.

    Args:
        names: of the layers. Entries of others are left out.

    Raises:
        ValueError: naming the entry, its rule and the value.
    """
    entries = _by_layer(state, "settling", "its basis so far")
    for name, entry in entries.items():
        sketch, known = (entry.get("sketch"), entry.get("stabilities")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(sketch, str) or not re.fullmatch(f"[0-9a-f]{{{8 * PROBES**2}}}", sketch):
            rule = f"`settling` of '{name}' must have a `sketch` of {PROBES**2} hexadecimal float32"
            raise ValueError(_damaged(rule, sketch))
        if not isinstance(known, list) or not all(type(n) in (int, float) and math.isfinite(n) for n in known):
            raise ValueError(_damaged(f"`settling` of '{name}' must have `stabilities`, a list of numbers", known))
    return {name: dict(entry) for name, entry in entries.items() if name in names}


def _by_layer(state: Mapping[str, Any], name: str, what: str) -> Mapping[str, Any]:
    entries = state.get(name, {})
    if not isinstance(entries, Mapping):
        raise ValueError(_damaged(f"`{name}` must be an object {{layer name: {what}}}", entries))
    return entries


def progress_in(saved: Any) -> Any:
    """The updater's state in what the Trainer wrote of the callback: {"args": ..., "attributes": ...}, or several.

    Raises:
        ValueError: it has none.
    """
    first = saved[0] if isinstance(saved, list) and saved else saved
    attributes = first.get("attributes") if isinstance(first, Mapping) else None
    if not isinstance(attributes, Mapping) or not isinstance(attributes.get("progress"), Mapping):
        raise ValueError(_damaged("`stateful_callbacks` must hold the callback's `attributes` with `progress`", saved))
    return attributes["progress"]


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _damaged(rule: str, value: Any) -> str:
    return (
        f"The OIALR state of the checkpoint (trainer_state.json, or the updater's `state_dict`) is damaged: {rule}; "
        f"got {str(value)[:200]!r}. Resume from an earlier checkpoint."
    )
