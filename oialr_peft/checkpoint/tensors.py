"""The tensors of a saved adapter against the model they are for, before anything in it moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import nn

from ..config import OIALRConfig
from ..errors import tell
from ..linalg import draw
from ..policy import Bases
from ..weights import DENSE, FACTORED, SIGMA, VH, AdaptedWeight, Form, Slot, U, form_of
from .rest import PARTS, PEFT_PREFIX, embedding_keys, rest_keys, running_statistics, wrapped


Tensors = Mapping[str, torch.Tensor]

# How far uᵀu x may be from x, relative to x: rounding of many rotations, or of a cast to a short dtype.
_TOLERANCE = {torch.float16: 0.02, torch.bfloat16: 0.1}


def forms_in_file(
    state_dict: Tensors, layers: Mapping[str, AdaptedWeight], one_sided: Mapping[str, str]
) -> dict[str, tuple[int | None, Form]]:
    """{layer name: its rank and form in the file}, rank None where the file holds a dense weight; by names and shapes.

    `one_sided` names the layers of a new adapter of which one basis is part of sigma, and the side. A live adapter
    takes the form of the file, whatever its own is: a run that goes on in a new process, or the best of its models.

    Raises:
        ValueError: a tensor is missing, empty, of a shape that cannot belong to the layer, of integers, not finite, or
            no orthonormal basis.
    """
    tensors = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in state_dict.items()}
    found: dict[str, tuple[int | None, Form]] = {}
    for name, layer in layers.items():
        weight = tensors.get(f"{name}.oialr_weight")
        if weight is not None:
            if twice := [slot.name for slot in (U, SIGMA, VH) if f"{name}.{slot.name}" in tensors]:
                raise ValueError(_unchanged(f"The adapter file holds '{name}' twice, dense and as '{twice[0]}'."))
            _check_shape(f"{name}.oialr_weight", weight, layer.shape)
            _check_values(f"{name}.oialr_weight", weight)
            found[name] = (None, DENSE)
            continue
        form = form_of(one_sided.get(name)) if layer.awaits_file else _form(name, tensors, layer)
        if missing := [slot.name for slot in (U, form.core, VH) if _absent(slot, form, name, tensors)]:
            raise ValueError(_unchanged(f"The adapter file lacks the tensor '{name}.{missing[0]}'."))
        rank = _rank(tensors[f"{name}.oialr_sigma"], form)
        if not 1 <= rank <= layer.full_rank:
            raise ValueError(
                f"Tensor '{name}.oialr_sigma' of the adapter file has shape "
                f"{tuple(tensors[f'{name}.oialr_sigma'].shape)}; its rank must be 1 to min(out, in) = "
                f"{layer.full_rank}. The model is unchanged."
            )
        for slot, shape in form.shapes(layer.matrix_shape, rank).items():
            _check_shape(f"{name}.{slot.name}", tensors[f"{name}.{slot.name}"], shape)
            _check_values(f"{name}.{slot.name}", tensors[f"{name}.{slot.name}"])
        for slot in form.bases:
            basis = tensors[f"{name}.{slot.name}"]
            check_basis(f"{name}.{slot.name}", basis if slot is U else basis.mT)
        found[name] = (rank, form)
    return found


def _form(name: str, tensors: Tensors, layer: AdaptedWeight) -> Form:
    """Of a factored weight: the longer side's basis is part of sigma if it is not there and sigma has that side."""
    held = Form(left=f"{name}.oialr_u" in tensors, right=f"{name}.oialr_vh" in tensors)
    sigma = tensors.get(f"{name}.oialr_sigma")
    moving = Form(*Bases("longer").held(layer.matrix_shape, step=0))
    if held != moving or sigma is None or sigma.ndim < 2 or layer.base is not None:
        return FACTORED
    whole = -2 if held.side == "left" else -1
    return held if sigma.shape[whole] == layer.matrix_shape[whole] else FACTORED


def _absent(slot: Slot, form: Form, name: str, tensors: Tensors) -> bool:
    return (slot is form.core or slot in form.bases) and f"{name}.{slot.name}" not in tensors


def _rank(sigma: torch.Tensor, form: Form) -> int:
    """The rank that sigma has in its form; 0 where it is no matrix."""
    return sigma.shape[-2 if form.side == "right" else -1] if sigma.ndim > 1 else 0


def check_basis(name: str, basis: torch.Tensor) -> None:
    """Refuse a matrix (..., n, r) whose columns are not orthonormal, told by what it does to one random vector.

    Raises:
        ValueError: naming the tensor and how far it is off.
    """
    dtype = torch.float64 if basis.dtype == torch.float64 else torch.float32
    q = basis.detach().to(dtype)
    generator = torch.Generator().manual_seed(0)
    probe = draw(generator, *q.shape[:-2], q.shape[-1], 1, dtype=dtype).to(q.device)
    off = float((q.mT @ (q @ probe) - probe).norm() / probe.norm())
    if not off <= _TOLERANCE.get(basis.dtype, 1e-2):
        raise ValueError(
            _unchanged(f"Tensor '{name}' of the adapter file is no orthonormal basis: it is off by {off:.2g}.")
        )


def check_factors_of(file: Path) -> None:
    """The values of a file's factors alone, for loading that asks no tuner (transformers' `load_adapter`).

    Raises:
        ValueError: naming the tensor.
    """
    with safe_open(file, framework="pt") as opened:
        for key in opened.keys():
            if (part := key.rpartition(".")[2]) in PARTS:
                tensor = opened.get_tensor(key)
                _check_values(key, tensor)
                if part in ("oialr_u", "oialr_vh"):
                    check_basis(key, tensor if part == "oialr_u" else tensor.mT)


def check_file(
    model: nn.Module, config: OIALRConfig, state_dict: Tensors, layers: Mapping[str, AdaptedWeight]
) -> None:
    """Refuse a file with tensors that nobody asked for, or without the rest that `train_rest` saves.

    Raises:
        ValueError: naming the first tensor; the model is unchanged.
    """
    known = {f"{name}.{part}" for name in layers for part in PARTS}
    tensors = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in state_dict.items()}
    unknown = sorted(key for key in tensors if key.rpartition(".")[2] in PARTS and key not in known)
    if unknown:
        raise ValueError(
            f"The adapter file has {len(unknown)} tensors of layers that this adapter lacks, first '{unknown[0]}'. It "
            "belongs to another model or other `target_modules`; the model is unchanged."
        )
    live = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in model.state_dict().items()}

    def keys_of(find: Callable[[nn.Module, Iterable[str]], list[str]]) -> set[str]:
        return {key.removeprefix(PEFT_PREFIX) for key in find(model, model.state_dict())}

    needed = keys_of(rest_keys) if config.train_rest else set()
    if missing := sorted(needed - tensors.keys()):
        raise ValueError(
            f"The adapter was trained with `train_rest`, but the adapter file lacks {len(missing)} tensors of the "
            f"rest, first '{missing[0]}'. It is incomplete or belongs to another model; the model is unchanged."
        )
    claimed = needed | keys_of(running_statistics) | keys_of(embedding_keys)
    owned = tuple(prefix.removeprefix(PEFT_PREFIX) for prefix in wrapped(model))
    for name in sorted(tensors.keys() - known):
        if name in claimed or (name.startswith(owned) and name in live):
            _check_shape(name, tensors[name], tuple(live[name].shape))
            _check_kind(name, tensors[name], live[name])
        elif not name.startswith(owned):
            _refuse_foreign(name, name in live)
    _check_statistics(model, tensors, live)


def _refuse_foreign(name: str, in_model: bool) -> None:
    if in_model:
        raise ValueError(
            f"The adapter file carries '{name}' of the base model, which only an adapter with `train_rest` does; it "
            "would replace what other adapters need. The model is unchanged."
        )
    raise ValueError(_unchanged(f"Nothing in this model takes the tensor '{name}' of the adapter file."))


def _check_statistics(model: nn.Module, tensors: Tensors, live: Tensors) -> None:
    """The running statistics are in the file together or not at all; say what either means for the model."""
    keys = [key.removeprefix(PEFT_PREFIX) for key in running_statistics(model, model.state_dict())]
    if (lacking := [key for key in keys if key not in tensors]) and len(lacking) < len(keys):
        raise ValueError(_unchanged(f"The adapter file lacks the tensor '{lacking[0]}'."))
    others = len(cast(dict, getattr(model, "peft_config", {}))) > 1
    if lacking:
        words = (
            f"The adapter file has no running statistics of BatchNorm (first '{lacking[0]}'), as those of earlier "
            "versions. If they changed in training, outputs are not what they were: save the adapter again from the "
            "model that was trained."
        )
    elif others and any(not torch.equal(tensors[key].to(live[key]), live[key]) for key in keys):
        words = (
            f"The running statistics of BatchNorm (first '{keys[0]}') are replaced by those of the adapter that is "
            "loaded. They belong to the model, so adapters that were trained apart need models of their own."
        )
    else:
        return
    tell(words)


def _check_shape(key: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) == shape:
        return
    head = {"classifier", "score"} & {*key.split(".")} and tensor.ndim == len(shape)
    way_out = f" If it is a classifier's head, load the base model with `num_labels={len(tensor)}`." if head else ""
    raise ValueError(
        f"Tensor '{key}' of the adapter file has shape {tuple(tensor.shape)}, expected {shape}. The "
        f"file is damaged or belongs to another model; the model is unchanged.{way_out}"
    )


def _check_kind(key: str, tensor: torch.Tensor, live: torch.Tensor) -> None:
    """Whole numbers in the place of fractions would be cast without a word; longer and shorter floats may be."""
    kinds = (tensor.dtype.is_floating_point, live.dtype.is_floating_point)
    if tensor.dtype != live.dtype and (kinds[0] != kinds[1] or tensor.element_size() < 2):
        what = f"Tensor '{key}' of the adapter file is of {tensor.dtype}, expected {live.dtype}."
        raise ValueError(_unchanged(what))
    if kinds[0] and not bool(torch.isfinite(tensor).all()) and bool(torch.isfinite(live).all()):
        raise ValueError(_not_finite(key))


def _check_values(key: str, tensor: torch.Tensor) -> None:
    if not tensor.dtype.is_floating_point or tensor.element_size() < 2:
        raise ValueError(
            _unchanged(f"Tensor '{key}' of the adapter file is of {tensor.dtype}; factors are floating-point numbers.")
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(_not_finite(key))


def warn_if_broken(state_dict: Tensors) -> None:
    """Say so where an adapter is saved that no one will be able to load."""
    ours = [key for key in state_dict if any(f".{part}" in key for part in PARTS)]
    broken = [key for key in ours if not bool(torch.isfinite(state_dict[key]).all())]
    if broken:
        tell(
            f"'{broken[0]}' of the adapter that is saved is not finite ({len(broken)} tensors are not): training "
            "diverged, and the file will be refused. Go back to an earlier checkpoint."
        )


def _not_finite(key: str) -> str:
    return (
        f"Tensor '{key}' of the adapter file is not finite: training diverged before it was saved, or the file is "
        "damaged. Take an earlier checkpoint; the model is unchanged."
    )


def _unchanged(what: str) -> str:
    return f"{what} The file is incomplete, damaged, or belongs to another model; the model is unchanged."
