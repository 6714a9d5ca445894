"""Which layers of a model are factorised, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from peft.utils.other import get_pattern_key
from torch import nn

from ..config import OIALRConfig
from .base import OIALRLayer
from .dispatch import is_quantised, unsupported_reason


# Output heads that lie inside a model's body (Autoformer's), or of models that do not tell which part is their body.
HEAD_NAMES = frozenset(
    "classification_head classifier head lm_head output_projection qa_outputs score seasonality_projection".split()
)
EMBEDDING = re.compile(r"(^|\.)(\w*_)?embed(ding|dings|s|der)?(_tokens)?\.")  # a layer inside an embedding module
SKINNY = 10  # a layer with max(out, in) > SKINNY * min(out, in) has nothing to give; the authors' rule


@dataclass
class TargetSelection:
    """The names of the layers that are factorised, in model order, and the reason for each that is not."""

    chosen: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"OIALR factorises {len(self.chosen)} layers: {', '.join(self.chosen)}"]
        return "\n".join(lines + [f"  left alone: {name} ({reason})" for name, reason in self.skipped.items()])


def select_targets(model: nn.Module, config: OIALRConfig, matches: Callable[[str], bool | None]) -> TargetSelection:
    """Choose the layers of `model` that an adapter of `config` factorises, and check each of them.

    `matches` tells whether a name is targeted by the config: True, False, or None for "excluded by name". With
    `config.ranks` (a saved adapter) exactly those layers are chosen; with `target_modules=None` every supported layer
    except output heads, tied and skinny ones.

    Raises:
        ValueError: nothing is left, a targeted layer is unsupported or quantised, its weight is not finite, or the
            wanted rank is above min(out, in).
    """
    modules = {name: m for name, m in model.named_modules() if name and not _inside_adapter(model, name)}
    if config.train_rest:
        _refuse_tied_modules_to_save(model, config)
    if config.ranks is not None:
        selection = TargetSelection([name for name in modules if name in config.ranks])
        if absent := sorted(set(config.ranks) - set(selection.chosen)):
            raise ValueError(
                f"The saved adapter has layers that this model lacks: {', '.join(absent[:5])}"
                f"{', ...' if len(absent) > 5 else ''}. It belongs to another architecture; load its own base."
            )
        return selection
    selection = (
        _default(model, modules, matches) if config.target_modules is None else _named(model, modules, config, matches)
    )
    for flag, index in (("keep_first_layer", 0), ("keep_last_layer", -1)):
        if getattr(config, flag) and selection.chosen:
            selection.skipped[selection.chosen.pop(index)] = f"kept dense by {flag}"
    if not selection.chosen and (config.target_modules is None or selection.skipped):
        raise ValueError(f"No layer is left to factorise. {selection}\nName the layers with `target_modules`.")
    for name in selection.chosen:
        _check(name, modules[name], config)
    return selection


def initial_rank(name: str, shape: tuple[int, ...], config: OIALRConfig) -> int:
    """The inner rank of a layer of this shape at factorisation, from `rank_pattern` and `r`."""
    key = get_pattern_key(list(config.rank_pattern), name)
    rank, full = config.rank_pattern.get(key, config.r), min(shape)
    if rank is None:
        return full
    return max(1, round(rank * full)) if isinstance(rank, float) else rank


def _default(
    model: nn.Module, modules: dict[str, nn.Module], matches: Callable[[str], bool | None]
) -> TargetSelection:
    selection = TargetSelection()
    uses = _uses(model)
    body = getattr(model, "base_model_prefix", "")
    body = f"{body}." if body and isinstance(getattr(model, body, None), nn.Module) else ""
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if callable(get_output) else None
    for name, layer in modules.items():
        base = layer.get_base_layer() if isinstance(layer, OIALRLayer) else layer
        reason = unsupported_reason(layer)
        if reason and not is_quantised(base):
            # Norms and embeddings are no news; any other matrix that is passed over is.
            if not isinstance(base, nn.Embedding) and any(p.ndim > 1 for p in base.parameters(recurse=False)):
                selection.skipped[name] = reason
        elif not name.startswith(body) or base is output or name.rpartition(".")[2] in HEAD_NAMES:
            selection.skipped[name] = "output head"
        elif EMBEDDING.search(name):
            selection.skipped[name] = "part of an embedding"
        elif uses[id(_weight(layer))] > 1:
            selection.skipped[name] = "its weight is tied to another layer's"
        elif (matched := matches(name)) is None:
            selection.skipped[name] = "excluded by the config"
        elif not matched:
            selection.skipped[name] = "not among `layers_to_transform`"
        elif reader := _direct_reader(modules, name):
            selection.skipped[name] = f"inside nn.{reader}, which reads the weight directly; not supported yet"
        elif not reason and max(_shape(layer)) > SKINNY * min(_shape(layer)):
            selection.skipped[name] = f"skinny: {_shape(layer)}"
        else:
            selection.chosen.append(name)
    return selection


def _named(
    model: nn.Module, modules: dict[str, nn.Module], config: OIALRConfig, matches: Callable[[str], bool | None]
) -> TargetSelection:
    selection = TargetSelection([name for name in modules if matches(name)])
    uses = _uses(model)
    names = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name in selection.chosen:
        if reader := _direct_reader(modules, name):
            raise ValueError(
                f"Target module '{name}' is part of an nn.{reader}, which reads the weight directly and would not see "
                "the adapter; it is not supported yet. Leave it out with `exclude_modules`."
            )
        if names[id(modules[name])] > 1:
            raise ValueError(
                f"Target module '{name}' stands in the model under several names, and only one of them would see the "
                "adapter. Leave it out with `exclude_modules`."
            )
        if config.frees_base and uses[id(getattr(modules[name], "weight", None))] > 1:
            raise ValueError(
                f"The weight of target module '{name}' is tied to another's and cannot be freed. Leave it out "
                "with `exclude_modules`, set `tie_word_embeddings=False`, or `keep_base_weights=True`."
            )
    return selection


def _check(name: str, layer: nn.Module, config: OIALRConfig) -> None:
    if reason := unsupported_reason(layer):
        raise ValueError(f"Target module '{name}' {reason}. Leave it out with `exclude_modules`.")
    shape = _shape(layer)
    if (rank := initial_rank(name, shape, config)) > min(shape):
        raise ValueError(
            f"Rank {rank} of target module '{name}' is above min(out, in) = {min(shape)}. Lower `r`, give it as a "
            "share in (0, 1], or set `rank_pattern` for this layer."
        )
    weight = _weight(layer)
    if weight.is_meta and not config.delay:
        raise ValueError(
            f"The weight of target module '{name}' is on the meta device (offloaded, or not loaded yet), so it cannot "
            "be factorised. Load the model onto a real device first."
        )
    if not weight.is_meta and not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"The weight of target module '{name}' has non-finite entries and cannot be factorised. Check the "
            "checkpoint it comes from, or leave it out with `exclude_modules`."
        )


def _shape(layer: nn.Module) -> tuple[int, ...]:
    return layer.weight_shape if isinstance(layer, OIALRLayer) else tuple(_weight(layer).shape)


def _weight(layer: nn.Module) -> torch.Tensor:
    return layer.base_weight if isinstance(layer, OIALRLayer) else cast(torch.Tensor, layer.weight)


def _inside_adapter(model: nn.Module, name: str) -> bool:
    parent = name.rpartition(".")[0]
    while parent:
        if isinstance(model.get_submodule(parent), OIALRLayer):
            return True
        parent = parent.rpartition(".")[0]
    return False


def _direct_reader(modules: dict[str, nn.Module], name: str) -> str | None:
    """The kind of parent that reads its children's weights instead of calling them (in eval: torch's fast path)."""
    parent = modules.get(name.rpartition(".")[0])
    return type(parent).__name__ if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)) else None


def _uses(model: nn.Module) -> Counter[int]:
    """How often each parameter stands in the model, by id."""
    return Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))


def _refuse_tied_modules_to_save(model: nn.Module, config: OIALRConfig) -> None:
    uses = _uses(model)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in (config.modules_to_save or ()) and any(
            uses[id(parameter)] > 1 for parameter in module.parameters()
        ):
            raise ValueError(
                f"`modules_to_save` names '{name}', whose weight is tied to another's, together with `train_rest`. "
                "The rest is trained and saved anyway: leave it out of `modules_to_save`."
            )
