"""A frozen copy of an adapter, which TRL's trainers take for their reference model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..layer import weights_of
from ..linalg import Factors
from ..weights import Weights
from .start import Start


def copied_weights(model: nn.Module, configs: Mapping[str, Any], adapter: str) -> Weights:
    """The weights that the adapter is to be a copy of, by the names of their layers; of most it is of none.

    DPO, GRPO, KTO and RLOO trainers of TRL add an adapter "ref" with the config object of the one that goes on
    training, then copy parameters whose names have LoRA's form. Of OIALR's, bases are buffers and ranks differ.
    """
    if adapter != "ref" or "trl" not in sys.modules:
        return {}
    other = next((name for name, config in configs.items() if name != adapter and config is configs[adapter]), None)
    return {} if other is None else weights_of(model, other)


def copied_starts(weights: Weights) -> dict[str, Start]:
    """What the copy starts with: these weights as they are now, by the names of their layers."""
    starts = {}
    for name, weight in weights.items():
        left, core, right = weight.factors
        left, right = (None if basis is None else basis.clone() for basis in (left, right))
        starts[name] = Start(Factors(left, core.detach().clone(), right), fingerprint=weight.fingerprint)
    return starts
