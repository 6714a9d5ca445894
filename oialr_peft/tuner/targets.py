"""Which layers of a model are factorised, and why the others are not."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..compat.peft_ import AuxiliaryTrainingWrapper, include_all_linear_layers
from ..config import OIALRConfig
from ..kinds import TakenApart, computes_weight, has_parts, is_quantised, own_parameters, unsupported_reason
from ..layer import OIALRLayer
from ..units import beginnings
from .rules import (
    check,
    direct_reader,
    is_body_head,
    is_in_embedding,
    is_tied,
    output_layers,
    pointless_reason,
    reason_against,
    refuse_tied_modules_to_save,
    targets_of,
    uses_of,
)


Matches = Callable[[str], bool | None]
Modules = dict[str, nn.Module]
LINEAR = (nn.Linear, Conv1D)  # what "all-linear" means


@dataclass
class TargetSelection:
    """The names of the layers that are factorised, in model order, and the reason for each that is not.

    `uncovered` are those of them that belong to no kind of layer, such as the fused experts of a mixture.
    """

    chosen: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    uncovered: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"OIALR factorises {len(self.chosen)} layers: {', '.join(self.chosen)}"]
        return "\n".join(lines + [f"  left alone: {name} ({reason})" for name, reason in self.skipped.items()])


def select_targets(model: nn.Module, config: OIALRConfig, matches: Matches) -> TargetSelection:
    """Choose the layers of `model` that an adapter of `config` factorises, and check each of them.

    `matches` tells whether a name is targeted by the config: True, False, or None for "excluded by name". With
    `config.ranks` (a saved adapter) exactly those layers are chosen; with `target_modules=None` every supported layer
    except output heads, tied, embedding and skinny ones and those that cannot get smaller. Attention is chosen as a
    whole; its projections then are layers of their own.

    Raises:
        ValueError: nothing is left, a targeted layer is unsupported or quantised, its weight is not finite, or the
            wanted rank is above min(out, in).
    """
    modules = {name: m for name, m in model.named_modules() if name and not _inside_adapter(model, name)}
    if config.train_rest:
        refuse_tied_modules_to_save(model, config)
    if config.ranks is not None:
        return _saved(modules, config.ranks)
    choose = _default if config.target_modules is None else _named
    selection = choose(model, modules, config, matches)
    for flag, index in (("keep_first_layer", 0), ("keep_last_layer", -1)):
        if getattr(config, flag) and selection.chosen:
            selection.skipped[selection.chosen.pop(index)] = f"kept dense by {flag}"
    if not selection.chosen and (config.target_modules is None or selection.skipped):
        raise ValueError(f"No layer is left to factorise. {selection}\nName the layers with `target_modules`.")
    for name in selection.chosen:
        check(name, modules[name], config)
    return selection


def _saved(modules: Modules, ranks: dict[str, int | None]) -> TargetSelection:
    """The layers of a saved adapter."""
    parents = {name.rpartition(".")[0] for name in ranks}
    selection = TargetSelection(
        [name for name, m in modules.items() if name in ranks or (has_parts(m) and name in parents)]
    )
    covered = {name for name in ranks if name in modules or name.rpartition(".")[0] in selection.chosen}
    if absent := sorted(set(ranks) - covered):
        raise ValueError(
            f"The saved adapter has layers that this model lacks: {', '.join(absent[:5])}"
            f"{', ...' if len(absent) > 5 else ''}. {_why_absent(absent[0], modules)}"
        )
    for name in selection.chosen:
        # A quantised one may stay: what the file holds takes its place, or adds to it.
        if isinstance(modules[name], OIALRLayer) or not (reason := unsupported_reason(modules[name], residual=True)):
            continue
        way = "Then load the adapter." if computes_weight(modules[name]) else "Load the adapter's own base model."
        raise ValueError(f"The layer '{name}' of the saved adapter {reason}. {way}")
    for target in (target for name in selection.chosen for target in targets_of(name, modules[name])):
        rank, full = ranks.get(target.name), min(target.shape[-2:])
        if rank is not None and rank > full:
            raise ValueError(
                f"The layer '{target.name}' of the saved adapter has rank {rank}, above its min(out, in) = {full}. "
                "Its config is damaged, or belongs to another model; the model is unchanged."
            )
    return selection


def _why_absent(name: str, modules: Modules) -> str:
    for start in beginnings(name):
        if isinstance(modules.get(start.removesuffix(".")), AuxiliaryTrainingWrapper):
            return f"Another adapter saves '{start.removesuffix('.')}' whole (`modules_to_save`): one model for each."
    return "It belongs to another architecture; load its own base."


def _default(model: nn.Module, modules: Modules, config: OIALRConfig, matches: Matches) -> TargetSelection:
    selection = TargetSelection()
    uses, prefix = uses_of(model), getattr(model, "base_model_prefix", "")
    body = f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""
    outputs = output_layers(model)
    for name, layer in modules.items():
        if name.rpartition(".")[0] in selection.chosen:
            continue  # the output projection of attention
        if "parametrizations" in name.split("."):
            continue  # of a layer that is told of itself
        base = layer.get_base_layer() if isinstance(layer, OIALRLayer) else layer
        reason = reason_against(layer, config)
        if reason and not is_quantised(base):
            # Norms and embeddings are no news; any other matrix that is passed over is.
            if not isinstance(base, nn.Embedding) and any(p.ndim > 1 for p in own_parameters(base)):
                excluded = matches(name) is None
                selection.skipped[name] = "excluded by the config" if excluded else reason
                selection.uncovered += [] if excluded else [name]
        elif isinstance(base, nn.Embedding) and not config.embeddings:
            continue
        elif not name.startswith(body) or base in outputs or is_body_head(name):
            selection.skipped[name] = "output head"
        elif is_in_embedding(name) and not isinstance(base, nn.Embedding):
            selection.skipped[name] = "part of an embedding"
        elif is_tied(layer, uses):
            selection.skipped[name] = "its weight is tied to another layer's"
        elif (matched := matches(name)) is None:
            selection.skipped[name] = "excluded by the config"
        elif not matched:
            selection.skipped[name] = "not among `layers_to_transform`"
        elif reader := direct_reader(model, name, selection.chosen):
            selection.skipped[name] = f"{reader} reads its weight directly"
        elif not reason and (pointless := pointless_reason(name, layer, config)):
            selection.skipped[name] = pointless
        else:
            selection.chosen.append(name)
    return selection


def _named(model: nn.Module, modules: Modules, config: OIALRConfig, matches: Matches) -> TargetSelection:
    names = [name for name in modules if matches(name)]
    whole = {name for name in names if has_parts(modules[name])}
    selection = TargetSelection([name for name in names if name.rpartition(".")[0] not in whole])
    uses = uses_of(model)
    occurrences = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for name in selection.chosen:
        if reader := direct_reader(model, name, selection.chosen):
            raise ValueError(
                f"The weight of target module '{name}' is read directly by {reader}, which would not see the adapter. "
                "Leave it out with `exclude_modules`; in torch's attention and encoder layers you can name the "
                "attention module itself as a target too."
            )
        if occurrences[id(modules[name])] > 1:
            raise ValueError(
                f"Target module '{name}' stands in the model under several names, and only one of them would see the "
                "adapter. Leave it out with `exclude_modules`."
            )
        if config.frees_base and is_tied(modules[name], uses):
            raise ValueError(
                f"The weight of target module '{name}' is tied to another's and cannot be freed. Leave it out "
                "with `exclude_modules`, set `tie_word_embeddings=False`, or `keep_base_weights=True`."
            )
    return selection


def _inside_adapter(model: nn.Module, name: str) -> bool:
    """Whether it belongs to a layer that is adapted, or to a copy that PEFT keeps of a whole module."""
    parent = name.rpartition(".")[0]
    while parent:
        module = model.get_submodule(parent)
        if isinstance(module, (OIALRLayer, AuxiliaryTrainingWrapper)):
            return True
        if isinstance(module, TakenApart) and not module.stays:
            return True
        parent = parent.rpartition(".")[0]
    return False


def choose_targets(model: nn.Module, config: OIALRConfig, matches: Matches) -> TargetSelection:
    """`select_targets`, its names put into the config in the place of `None` or "all-linear", as PEFT's tuners do."""
    if str(config.target_modules).lower() == "all-linear":
        include_all_linear_layers(config, model)
        adapted = {
            name
            for name, layer in model.named_modules()
            if isinstance(layer, OIALRLayer) and layer.kind.plain in LINEAR
        }
        config.target_modules = {*(config.target_modules or ()), *adapted}  # PEFT tells layers by their classes' names
    selection = select_targets(model, config, matches)
    if config.target_modules is None:
        config.target_modules = set(selection.chosen)
    return selection


def with_target(config: OIALRConfig, name: str) -> OIALRConfig:
    """The config as if it targeted `name`, to ask PEFT whether the name is excluded or its layer index left out."""
    probe = copy.copy(config)
    probe.target_modules = {name.rpartition(".")[2]}  # PEFT looks at the layer index of suffix matches only
    return probe
