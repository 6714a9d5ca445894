"""The rules of target selection, one by one."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from torch import nn

from ..compat.reads import reaches
from ..compat.torch_ import is_offloaded
from ..config import RESIDUAL_RANK, OIALRConfig
from ..kinds import (
    PART_NAMES,
    Kind,
    MultiheadAttention,
    TakenApart,
    has_parts,
    is_quantised,
    kind_of,
    part_weights,
    plain_weight,
    unsupported_reason,
)
from ..layer import OIALRLayer, adapted_weights, oialr_layers
from ..linalg import factored_size


# Output heads that lie inside a model's body (Autoformer's), or of models that do not tell which part is their body.
HEAD_NAMES = frozenset(
    "classification_head classifier head lm_head output_projection qa_outputs score seasonality_projection to_logits "
    "trend_projection".split()
)
EMBEDDING = re.compile(r"(^|\.)(\w*_)?embed(ding|dings|s|der)?(_tokens)?\.")  # a layer inside an embedding module
SKINNY = 10  # a layer with max(out, in) > SKINNY * min(out, in) has nothing to give; the authors' rule


def initial_rank(name: str, full_rank: int, config: OIALRConfig) -> int:
    """The inner rank of a layer at factorisation, from `rank_pattern` and `r`.

    A part of a module that is taken apart goes by its own name in `rank_pattern`, else by that of the module.
    """
    rank, patterns = config.r, list(config.rank_pattern)
    parent, _, last = name.rpartition(".")
    for candidate in (name, *([parent] if last in PART_NAMES else [])):
        if (key := get_pattern_key(patterns, candidate)) in config.rank_pattern:
            rank = config.rank_pattern[key]
            break
    if rank is None:
        return min(full_rank, RESIDUAL_RANK) if config.residual else full_rank
    return max(1, round(rank * full_rank)) if isinstance(rank, float) else rank


class Target(NamedTuple):
    """One weight that is factored: the name of the layer that holds it, its shape as a matrix (or several), its
    values."""

    name: str
    shape: tuple[int, ...]
    weight: torch.Tensor
    layer: nn.Module | None = None  # whose weight it is

    def matrix(self) -> torch.Tensor:
        """The values, of a quantised weight those that it stands for."""
        weight = self.weight if self.layer is None else plain_weight(self.layer)
        return weight.detach().reshape(self.shape)


def targets_of(name: str, layer: nn.Module) -> list[Target]:
    """The weights of a supported layer: its own, or those of its parts."""
    if isinstance(layer, OIALRLayer):
        return [Target(name, layer.matrix_shape, layer.base_weight, layer.get_base_layer())]
    if isinstance(layer, TakenApart):
        return [target for child in layer.parts for target in targets_of(f"{name}.{child}", getattr(layer, child))]
    if has_parts(layer):
        weights = part_weights(layer)
        return [Target(f"{name}.{child}", tuple(weight.shape), weight) for child, weight in weights.items()]
    kind = cast(Kind, kind_of(layer))  # callers have asked `unsupported_reason`
    return [Target(name, kind.matrix_shape(layer), cast(torch.Tensor, layer.weight), layer)]


def reason_against(layer: nn.Module, config: OIALRConfig) -> str | None:
    """Why a layer, wrapped by another adapter or not, cannot be factorised; None if it can."""
    return unsupported_reason(layer.get_base_layer() if isinstance(layer, OIALRLayer) else layer, config.residual)


def check(name: str, layer: nn.Module, config: OIALRConfig) -> None:
    """Raise if a targeted layer cannot be factorised as the config wants."""
    if reason := reason_against(layer, config):
        raise ValueError(f"Target module '{name}' {reason}. Leave it out with `exclude_modules`.")
    for target, shape, weight, _ in targets_of(name, layer):
        full = min(shape[-2:])
        if not math.prod(shape):
            raise ValueError(
                f"Target module '{target}' holds no values: {shape}. Leave it out with `exclude_modules`."
            )
        if (rank := initial_rank(target, full, config)) > full:
            raise ValueError(
                f"Rank {rank} of target module '{target}' is above min(out, in) = {full}. Lower `r`, give it as a "
                "share in (0, 1], or set `rank_pattern` for this layer."
            )
        if weight.is_meta and (not config.delay or is_offloaded(layer)):
            raise ValueError(
                f"The weight of target module '{target}' is on the meta device (offloaded, or not loaded yet), so it "
                "cannot be factorised. Load the model onto a real device first."
            )
        if not weight.is_meta and not is_quantised(layer) and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"The weight of target module '{target}' has non-finite entries and cannot be factorised. Check the "
                "checkpoint it comes from, or leave it out with `exclude_modules`."
            )


def refuse_beside(others: Iterable[OIALRConfig]) -> None:
    """Refuse a further adapter beside those that take the whole model, or leave it without its base."""
    for field, rule in (
        ("train_rest", "the rest of the model can belong to one adapter only"),
        ("frees_base", "a freed base weight leaves nothing for a second adapter"),
    ):
        if any(getattr(other, field) for other in others):
            raise ValueError(
                f"Several OIALR adapters need `train_rest=False` and kept base weights in all of them: {rule}. "
                "Create each with OIALRConfig(keep_base_weights=True, train_rest=False)."
            )


def refuse_on_replaced(model: nn.Module, method: str) -> None:
    """Take another method's layers off those whose weight an OIALR adapter replaces, and refuse them.

    PEFT's methods merge into, or even compute with, the weight of the innermost layer, which counts for nothing there.
    """
    below = {n: getattr(m, "base_layer", None) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    on = {name: layer for name, layer in below.items() if isinstance(layer, OIALRLayer) and layer.is_replaced}
    for name, layer in on.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    if on:
        raise ValueError(
            f"{method} on '{next(iter(on))}', whose weight an OIALR adapter replaces, could not be merged or saved "
            "with it. Make the model plain first, by `save_compressed` or `merge_and_unload`, and adapt that; LoRA "
            "works beside OIALRConfig(residual=True) as it is."
        )


def refuse_adapter_names(names: Sequence[str] | None) -> contextlib.AbstractContextManager[None]:
    """A forward in which each sample names an adapter, which PEFT's LoRA can do."""
    if names is not None:
        raise NotImplementedError(
            f"`adapter_names`, an adapter for each sample of a batch, is not there for OIALR; got {names!r}. Call "
            "`set_adapter`, one batch for each adapter."
        )
    return contextlib.nullcontext()


def refuse_to_merge_shared(model: nn.Module) -> None:
    """Refuse to put an adapter's weight in the place of one that others of the model share: it would be theirs too."""
    layers, uses = oialr_layers(model), uses_of(model)
    for name in adapted_weights(model):
        if is_tied(layers[name], uses):
            raise ValueError(
                f"The weight of '{name}' is tied to another's, and the adapter has one of its own for it, so the two "
                "can't be merged. `save_compressed` writes both where the adapter replaces it; to merge, load the "
                "base model with `tie_word_embeddings=False`, or leave the tied layers out with `exclude_modules`."
            )


def output_layers(model: nn.Module) -> set[nn.Module]:
    """The output heads that a model knows itself: transformers' `get_output_embeddings`, timm's `get_classifier`."""
    timm_inside = getattr(model, "timm_model", None)  # of transformers' TimmWrapper
    asked = [(model, "get_output_embeddings"), (model, "get_classifier"), (timm_inside, "get_classifier")]
    ways = [getattr(asked_one, way, None) for asked_one, way in asked]
    given = []
    for way in ways:
        with contextlib.suppress(TypeError):  # another library's, which is told which head
            given.append(way() if callable(way) else None)
    heads = [head for found in given for head in (found if isinstance(found, (tuple, list)) else (found,))]
    return {module for head in heads if isinstance(head, nn.Module) for module in head.modules()}


def is_body_head(name: str) -> bool:
    return name.rpartition(".")[2] in HEAD_NAMES


def is_in_embedding(name: str) -> bool:
    return EMBEDDING.search(name) is not None


def pointless_reason(name: str, layer: nn.Module, config: OIALRConfig) -> str | None:
    """Why the default leaves a layer alone: too skinny, or factors that are no smaller even at the lowest rank."""
    from ..policy import floor_rank  # on first use: `import oialr_peft` makes none of its dataclasses

    for _, shape, *_ in targets_of(name, layer):
        full = min(shape[-2:])
        table = isinstance(layer, nn.Embedding) and shape[0] > shape[1]  # of words: tall by nature
        if max(shape[-2:]) > SKINNY * full and not table:
            return f"skinny: {shape}"
        if config.residual:
            continue
        held, dense = factored_size(shape, floor_rank(full, config.min_rank)), math.prod(shape)
        if held >= dense:
            return f"cannot get smaller: its factors hold at least {held} values, the weight {dense}"
    return None


def direct_reader(model: nn.Module, name: str, chosen: list[str]) -> str | None:
    """The class that would read a layer's weight instead of calling it, past an adapter.

    nn.MultiheadAttention does so with its output projection; nn.TransformerEncoderLayer in eval with its linear
    layers, unless its attention is taken apart too; heads of some models with the table of words.
    """
    parent_name, _, last = name.rpartition(".")
    parent, layer = model.get_submodule(parent_name), model.get_submodule(name)
    if isinstance(parent, nn.TransformerEncoderLayer):
        attention = f"{parent_name}.self_attn".removeprefix(".")
        called = isinstance(parent.self_attn, MultiheadAttention) or attention in chosen
        return None if called or layer is parent.self_attn else type(parent).__name__
    if isinstance(getattr(layer, "base_layer", layer), nn.Embedding):
        return next((type(module).__name__ for module in model.modules() if reaches(module, last)), None)
    return type(parent).__name__ if isinstance(parent, nn.MultiheadAttention) else None


def uses_of(model: nn.Module) -> Counter[int]:
    """How often each parameter stands in the model, by id."""
    return Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))


def is_tied(layer: nn.Module, uses: Counter[int]) -> bool:
    """Whether a weight of the layer stands in the model more than once."""
    weights = [layer.base_weight] if isinstance(layer, OIALRLayer) else list(layer.parameters())
    return any(uses[id(cast(nn.Parameter, weight))] > 1 for weight in weights if weight.ndim > 1)


def refuse_tied_modules_to_save(model: nn.Module, config: OIALRConfig) -> None:
    uses = uses_of(model)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in (config.modules_to_save or ()) and any(
            uses[id(parameter)] > 1 for parameter in module.parameters()
        ):
            raise ValueError(
                f"`modules_to_save` names '{name}', whose weight is tied to another's, together with `train_rest`. "
                "The rest is trained and saved anyway: leave it out of `modules_to_save`."
            )
