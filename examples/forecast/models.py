"""PatchTST and PatchTSMixer with the flatten head, of a size for one core, and which of their layers get smaller."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSTConfig,
    PatchTSTForPrediction,
)


CHANNELS, PATCH = 7, 16
# The head is named too: the default rule leaves it alone as an output head and as skinny, and it is most of the model.
TARGETS = {
    "patchtst": r".*(_proj|ff\.[03]|head\.projection)",
    "patchtsmixer": r".*(fc[12]|attn_layer|base_forecast_block)",
}


def make_model(name: str, context: int, horizon: int, width: int = 32, layers: int = 2) -> nn.Module:
    """An untrained model, one set of weights for all channels; each window is scaled by its own mean and deviation."""
    common: dict[str, Any] = {"context_length": context, "prediction_length": horizon, "d_model": width}
    common |= {"num_input_channels": CHANNELS, "patch_length": PATCH, "patch_stride": PATCH, "scaling": "std"}
    if name == "patchtst":
        sizes: dict[str, Any] = {"num_attention_heads": 4, "ffn_dim": 2 * width, "num_hidden_layers": layers}
        sizes |= {"ff_dropout": 0.2, "head_dropout": 0.2, "pooling_type": None}
        return PatchTSTForPrediction(PatchTSTConfig(**common, **sizes))
    sizes = {"expansion_factor": 2, "num_layers": layers, "dropout": 0.2, "head_dropout": 0.2}
    return PatchTSMixerForPrediction(PatchTSMixerConfig(**common, **sizes))
