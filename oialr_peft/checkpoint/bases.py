"""Adapters saved without their bases: sigma alone, and fingerprints of the weights that the bases come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from ..config import OIALRConfig
from ..linalg import leading_directions, probe_bases, same
from ..weights import SIGMA, VH, AdaptedWeight, U, Weights
from .rest import PEFT_PREFIX


Tensors = Mapping[str, torch.Tensor]
FINGERPRINTS = "oialr_fingerprints"  # a row for each layer, by their names in order


def leave_out_bases(state_dict: Tensors, config: OIALRConfig, weights: Weights) -> dict[str, torch.Tensor]:
    """What is saved with `save_bases=False`: no bases, but how to tell that others are the same.

    Raises:
        ValueError: a layer's bases are not known to be those of its base weight.
    """
    if config.save_bases:
        return dict(state_dict)
    rows = []
    for name, weight in sorted(weights.items()):
        left, _, right = cast(Any, weight.factors)
        if (known := weight.fingerprint) is None or not same(known[1:], probe_bases(left, right)):
            raise ValueError(
                f"The bases of '{name}' were read from a file, not made from this base model, so it may be that they "
                "cannot be made from it again. Save them: set `save_bases=True` in the adapter's config."
            )
        rows.append(known)
    kept = {key: t for key, t in state_dict.items() if f".{U.name}." not in key and f".{VH.name}." not in key}
    prefix = PEFT_PREFIX if all(key.startswith(PEFT_PREFIX) for key in kept) else ""  # transformers adds it later
    return {**kept, f"{prefix}{FINGERPRINTS}": torch.tensor(rows, dtype=torch.float32, device="cpu")}


def make_bases(state_dict: Tensors, config: OIALRConfig, weights: Weights) -> dict[str, torch.Tensor]:
    """A file's tensors with the bases that it was saved without, made from the weights of the base model.

    Raises:
        ValueError: they are not those that were trained with, because the base model is another one.
    """
    whole = dict(state_dict)
    keys = [key for key in whole if key.endswith(FINGERPRINTS)]  # earlier versions had the prefix twice
    rows = whole.pop(keys[0]) if keys else None
    if rows is None or rows.shape != (len(weights), 3):
        return whole  # whoever checks the file says which bases it lacks
    for (name, weight), row in zip(sorted(weights.items()), rows.tolist(), strict=True):
        sigma = whole.get(f"{PEFT_PREFIX}{name}.{SIGMA.name}")
        rank = 0 if sigma is None or sigma.ndim < 2 else sigma.shape[-1]
        if weight.base is not None and 1 <= rank <= weight.full_rank:
            left, right = _bases_again(name, weight, rank, config.init, row)
            whole |= {f"{PEFT_PREFIX}{name}.{U.name}": left, f"{PEFT_PREFIX}{name}.{VH.name}": right}
    return whole


def _bases_again(
    name: str, weight: AdaptedWeight, rank: int, method: str, row: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bases of one layer, made from its base weight and compared with those that were saved."""
    base = cast(Any, weight).base().detach()
    found = leading_directions(base.reshape(weight.matrix_shape), rank, method)
    if found is None or not same(found.fingerprint, row):
        raise ValueError(
            "The adapter was saved without its bases (`save_bases=False`), and those made from the weight of "
            f"'{name}' are not the ones it was trained with (fingerprint {found and found.fingerprint}, saved "
            f"{row}): the base model is another one, or of another dtype. Load the very base that it was trained on, "
            "or save the adapter there again with `save_bases=True`. The model is unchanged."
        )
    weight.fingerprint = found.fingerprint
    return found.left, found.right
