"""transformers' quantizer registry rebuilds the two-factor layers on the meta device before weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import HfQuantizer

from ..compat.reads import reads_weight
from ..compat.transformers_ import checkpoint_files
from ..kinds import TakenApart, leave_fast_path, take_apart
from .modules import Factored, factored_like, full_rank, has_factored_form, plain_like
from .record import FORMAT_VERSION, CompressedConfig


class CompressedQuantizer(HfQuantizer):
    """Loads and saves compressed checkpoints. Nothing is quantised: transformers only calls it so."""

    _of_other_shape: Collection[str] = ()  # names of tensors whose shape in the file is not the model's
    requires_calibration = True  # only written by `save_compressed`, never made on the fly
    quantization_config: Any

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a record of a newer format.

        Raises:
            ValueError: naming both versions.
        """
        found = self.quantization_config.format_version
        if type(found) is not int or found > FORMAT_VERSION:
            raise ValueError(
                f"This compressed model has format version {found!r}; this oialr_peft reads versions up to "
                f"{FORMAT_VERSION}. Upgrade it, as its README says."
            )

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        # On first use: importing the package needs none.
        from .files import check_entries, check_hashes, read_headers, refuse_dense

        files = checkpoint_files(kwargs)
        entries = read_headers(files)
        shape_like(model, self.quantization_config)
        tensors, factors = model.state_dict(), _tensors(model)
        check_entries(entries, tensors, factors)
        # transformers refuses these itself, unless it was told to `ignore_mismatched_sizes` and makes them anew.
        shared = entries.keys() & tensors.keys()
        self._of_other_shape = {key for key in shared if entries[key][1]["shape"] != list(tensors[key].shape)}
        refuse_unclaimed(model, entries)
        refuse_dense(entries, factors)
        check_hashes(files, self.quantization_config.files)
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        # transformers 5 marks what it loaded, and fills what was missing with random values and a note in the log.
        if not hasattr(HfQuantizer, "update_missing_keys"):
            # What is still on the meta device is offloaded to disk; transformers puts what was missing elsewhere.
            tensors = {name: tensor for name, tensor in _needed(model).items() if not tensor.is_meta}
            unmarked = [name for name, tensor in tensors.items() if not hasattr(tensor, "_is_hf_initialized")]
            refuse_missing([name for name in unmarked if name not in self._of_other_shape])
        refuse_broken(model)
        model.is_quantized = False  # type: ignore[assignment]  # it trains, casts and takes adapters like any other
        return model

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """transformers 4 asks here; later ones leave marks."""
        needed, tied = _needed(model), getattr(model.config, "tie_word_embeddings", True)
        shared: Any = model._tied_weights_keys if tied else ()  # patterns; such a tensor is in the file once
        refuse_missing([k for k in missing_keys if k in needed and not any(re.search(s, k) for s in shared or ())])
        return missing_keys

    def update_unexpected_keys(self, model: nn.Module, unexpected_keys: list[str]) -> list[str]:
        """transformers 4 asks here; later ones tell the files before anything is loaded."""
        refuse_unclaimed(model, unexpected_keys)
        return unexpected_keys

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return as_dense(model)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


def as_dense(model: nn.Module) -> nn.Module:
    """The model with every two-factor layer as one plain nn.Linear or convolution again."""
    for name, module in reversed(list(model.named_modules())):  # children first
        if isinstance(module, Factored):
            model.set_submodule(name, plain_like(module))
        elif isinstance(module, TakenApart):
            model.set_submodule(name, module.join())
    return model


def shape_like(model: nn.Module, config: CompressedConfig) -> None:
    """Put two-factor layers without values in the places that the config names.

    A model that is only the body of the saved one, or has it as its body, is recognised by the prefix of its names.

    Raises:
        ValueError: the model lacks a layer, or a rank is above a layer's size.
    """
    modules = dict(model.named_modules())
    for name in config.attention:
        if place := _find(modules, model, name):
            model.set_submodule(place, apart := take_apart(modules[place]))
            apart.stays = True
    modules = dict(model.named_modules())
    absent = []
    for name, rank in config.layers.items():
        place = _find(modules, model, name)
        if place is None:
            absent.append(name)
            continue
        if not has_factored_form(modules[place]):
            raise ValueError(
                f"`layers` in the `quantization_config` of config.json names '{name}', a "
                f"{type(modules[place]).__name__}, which has no factored form. The file is damaged or belongs to "
                "another architecture."
            )
        if type(rank) is not int or not 1 <= rank <= full_rank(modules[place]):
            raise ValueError(
                f"Layer '{name}' of the compressed model has rank {rank!r}; it must be from 1 to min(out, in) = "
                f"{full_rank(modules[place])}. Its config.json is damaged or belongs to another architecture."
            )
        factored = factored_like(modules[place], rank)
        model.set_submodule(place, factored)
        parent, _, child = place.rpartition(".")
        factored.is_read = reads_weight(model.get_submodule(parent), child)
        # A model that was compressed, trained with a new adapter and compressed again has factored factors.
        modules |= {f"{place}.down": factored.down, f"{place}.up": factored.up}
    leave_fast_path(model)
    if len(absent) == len(config.layers) and absent:
        raise ValueError(
            f"{type(model).__name__} has none of the {len(absent)} layers of the compressed model, first "
            f"'{absent[0]}'. Load it with the class that its config.json names under `architectures`."
        )


def _tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the two-factor layers by name."""
    return {
        f"{name}.{part}": parameter
        for name, module in model.named_modules()
        if isinstance(module, Factored)
        for part, parameter in module.named_parameters()
    }


def _needed(model: nn.Module) -> dict[str, nn.Parameter]:
    """The tensors that a file must have: the factors and, for the class that was saved, all that are not computed."""
    whole = type(model).__name__ in (getattr(model.config, "architectures", None) or ())  # type: ignore[union-attr]
    if not whole:
        return _tensors(model)
    computed: Any = model._keys_to_ignore_on_load_missing or ()  # when the model is made, such as fixed positions
    tensors = model.named_parameters()
    return {name: tensor for name, tensor in tensors if not any(re.search(key, name) for key in computed)}


def refuse_missing(names: list[str]) -> None:
    """Refuse a file that lacks tensors."""
    if names:
        raise ValueError(f"The checkpoint lacks the tensor '{names[0]}'. It is incomplete; download it again.")


def refuse_unclaimed(model: nn.Module, keys: Iterable[str]) -> None:
    """Refuse two factors in the file for a layer that the record leaves dense: it would get random weights."""
    keys, modules = set(keys), dict(model.named_modules())
    for key in sorted(key for key in keys if key.endswith(".down.weight")):
        name = key.removesuffix(".down.weight")
        place = _find(modules, model, name)
        if f"{name}.up.weight" in keys and place is not None and not hasattr(modules[place], "down"):
            raise ValueError(
                f"The weights file has two factors of the layer '{name}', which `layers` in the `quantization_config` "
                "of config.json does not name. The two files are of different saves, or config.json is damaged. Save "
                "or download both again."
            )


def refuse_broken(model: nn.Module) -> None:
    """Refuse a model that holds NaN or infinite values."""
    if broken := broken_tensors(model):
        raise ValueError(
            f"The tensor '{broken[0]}' of the compressed model holds NaN or infinite values. The file is damaged, or "
            "training diverged; take another checkpoint."
        )


def broken_tensors(model: nn.Module) -> list[str]:
    """The parameters that are not finite and the buffers, in which a mask may be infinite, that hold NaN."""
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    filled = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    floats = {name: tensor for name, tensor in filled.items() if tensor.is_floating_point()}
    return [n for n, t in floats.items() if bool((~t.isfinite() if n in trained else t.isnan()).any())]


def _find(modules: dict[str, nn.Module], model: nn.Module, name: str) -> str | None:
    prefix = getattr(model, "base_model_prefix", "")
    candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    shorter = name.partition(".")[2]
    return next((candidate for candidate in (*candidates, shorter) if candidate in modules), None)
