"""A live model with an OIALR adapter as a model of two-factor layers."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ..errors import NO_ADAPTER
from ..kinds import TakenApart
from ..layer import OIALRLayer, adapted_weights, oialr_layers
from ..linalg import full_precision
from ..plain import plain_tensors
from ..weights import AdaptedWeight
from .guard import is_compressed, is_dense_twin
from .quantizer import CompressedQuantizer, broken_tensors, shape_like
from .record import CompressedConfig


def parts(base: Any) -> tuple[dict[str, torch.Tensor], CompressedConfig]:
    """The tensors of `base` and its active adapter in a model of two-factor layers, and the record of these layers.

    Every layer of the active adapter becomes two factors (sigma folded into the smaller one, multiplied in float32 and
    cast once to the base weight's dtype), or dense where two factors would hold as much; other tensors are shared.
    """
    tensors, weights, wrapped = plain_tensors(base), adapted_weights(base), oialr_layers(base)
    for name, weight in weights.items():
        _write(tensors, name, weight, wrapped[name])
    layers = {name: weight.rank for name, weight in weights.items() if weight.pair_is_smaller}
    attention = [name for name, module in base.named_modules() if isinstance(module, TakenApart)]
    earlier: Any = getattr(base.config, "quantization_config", None)
    if is_compressed(earlier) and not is_dense_twin(base):
        layers = {**earlier.layers, **layers}  # the adapter factored the factors of a compressed model
        attention = sorted({*earlier.attention, *attention})
    return tensors, CompressedConfig(layers, attention)


def compressed(base: PreTrainedModel) -> PreTrainedModel:
    """The model of two-factor layers that `parts` describes."""
    tensors, config = parts(base)
    model = _empty_like(base)
    if _untied_pair(model, tensors):
        model = _empty_like(base, tied=False)
        if pair := _untied_pair(model, tensors):
            raise ValueError(
                f"{type(base).__name__} ties '{pair[0]}' and '{pair[1]}' on loading, but they were trained apart, "
                "so no checkpoint of this class holds both. Leave them out of `modules_to_save` and `target_modules`."
            )
    shape_like(model, config)
    check_shapes(model, tensors)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    check_whole(model, tensors)
    model.config.quantization_config = config
    model.hf_quantizer = cast(Any, CompressedQuantizer(config))
    return model


def check_adapter(base: nn.Module) -> None:
    """Refuse a model that has no adapter, one that makes nothing smaller, or one of another method beside it."""
    weights = adapted_weights(base)
    if not weights:
        raise TypeError(f"{type(base).__name__} has no active OIALR adapter to compress. {NO_ADAPTER}")
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, OIALRLayer):
            raise ValueError(
                f"'{name}' has an adapter of another method ({type(module).__name__}), which the compressed model "
                "would not hold. Save the OIALR adapter, load it on the base model alone, and compress that."
            )
    if any(weight.base is not None for weight in weights.values()):
        raise ValueError(
            "save_compressed writes weights as two small factors, and a residual adapter leaves them whole: nothing "
            "would be smaller. Save the adapter with `save_pretrained`, or the model with `merge_and_unload()`; for a "
            "smaller one train with OIALRConfig(residual=False), on the merged model if need be."
        )


def check_shapes(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse tensors of other shapes than the model's, which is made from its config."""
    for name, place in model.state_dict().items():
        if name in tensors and tensors[name].shape != place.shape:
            raise ValueError(
                f"'{name}' has shape {list(tensors[name].shape)}, but the config of this {type(model).__name__} makes "
                f"it {list(place.shape)}, and a compressed model is made from its config when it is loaded. Set "
                "the field of `model.config` that says so, usually `num_labels` (a head was replaced) or `vocab_size`."
            )


def check_whole(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Refuse a model that has no place for one of the tensors, or without values for one, or with broken ones."""
    state = model.state_dict()
    if lost := [name for name in tensors if name not in state]:
        raise ValueError(
            f"'{lost[0]}' ({len(lost)} tensors) was added to a {type(model).__name__}, which has no place for it when "
            "it is made from its config, so a compressed model would be loaded without. Give the model a class of its "
            "own that makes it, or save `merge_and_unload()` in your own way."
        )
    if broken := broken_tensors(model):
        raise ValueError(
            f"'{broken[0]}' holds NaN or infinite values ({len(broken)} tensors do), so the model is not written. Go "
            "back to a checkpoint from before the training diverged."
        )
    if absent := [name for name, tensor in state.items() if tensor.is_meta]:
        raise ValueError(
            f"No values were found for '{absent[0]}' ({len(absent)} tensors), which the config of this "
            f"{type(model).__name__} makes. If layers were removed, set the field of `model.config` that counts them, "
            "usually `num_hidden_layers`."
        )


def _write(tensors: dict[str, torch.Tensor], name: str, weight: AdaptedWeight, layer: OIALRLayer) -> None:
    """Put the two factors of a layer in the place of its weight, or the dense weight where they are no smaller."""
    stored = layer.base_weight.dtype
    if not weight.pair_is_smaller:
        tensors[f"{name}.weight"] = weight.dense(stored)
        return
    with full_precision(weight.core.device):
        left, right = weight.full_factors.folded()
    down, up = layer.kind.pair_weights(layer.get_base_layer(), left, right)
    tensors.pop(f"{name}.weight", None)
    tensors[f"{name}.down.weight"] = down.to(stored).contiguous()
    tensors[f"{name}.up.weight"] = up.to(stored).contiguous()
    if f"{name}.bias" in tensors:
        tensors[f"{name}.up.bias"] = tensors.pop(f"{name}.bias")


def _untied_pair(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Names of two tensors that `model` ties and that have different values by now, or one of them factors."""
    model.tie_weights()
    tied: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = tied.setdefault(id(parameter), name)
        one, other = tensors.get(first), tensors.get(name)
        if one is not other and (one is None or other is None or not torch.equal(one, other)):
            return [first, name]
    return []


def _empty_like(base: PreTrainedModel, tied: bool = True) -> PreTrainedModel:
    config = copy.deepcopy(base.config)
    config.dtype = base.dtype
    # Encoder-decoder models of the T5 family derive another forward from this field.
    if not tied and not config.is_encoder_decoder:
        config.tie_word_embeddings = config.get_text_config(decoder=True).tie_word_embeddings = False
    with torch.device("meta"):
        model: Any = type(base)(config)
        model = model.to(base.dtype)
    for name, _ in list(model.named_children()):
        if getattr(base, name, None) is None:  # BertModel(config, add_pooling_layer=False)
            setattr(model, name, None)
    if (generation := getattr(base, "generation_config", None)) is not None:
        model.generation_config = copy.deepcopy(generation)
    return model.eval()
