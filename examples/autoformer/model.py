"""The forecasting model, its loss and its metrics."""

from typing import Any

import torch
from attention import mend_attention
from decomposition import speed_up_decomposition
from torch import Tensor
from transformers import AutoformerConfig, AutoformerForPrediction


CHANNELS = 7
TIME_FEATURES = 5
# Layers with 7 or 26 inputs or outputs have nothing to gain from factors. At the paper's width of 512 the rule for
# skinny layers finds most of them; by name they stay dense at every width, and the same 22 matrices are factorised.
KEPT_DENSE = r".*(parameter_projection|trend_projection|seasonality_projection|value_projection).*"


def build_config(
    horizon: int = 96,
    context: int = 96,
    label_length: int = 48,
    d_model: int = 128,
    heads: int = 8,
    ffn: int = 512,
    encoder_layers: int = 2,
    decoder_layers: int = 1,
    moving_average: int = 25,
    dropout: float = 0.05,
) -> AutoformerConfig:
    """Returns the configuration nearest to thuml's published ETTm2 model.

    Raises:
        ValueError: `moving_average` is even, or `d_model` is no multiple of `heads`.
    """
    if moving_average < 1 or moving_average % 2 == 0:
        raise ValueError(
            f"moving_average: must be odd, or the trend is shorter than the series, got {moving_average}; "
            f"try {moving_average + 1}."
        )
    if heads < 1 or d_model % heads:
        raise ValueError(f"d_model: must be a multiple of heads, got {d_model} and {heads}; try {8 * heads}.")
    return AutoformerConfig(
        prediction_length=horizon,
        context_length=context,
        label_length=label_length,
        input_size=CHANNELS,
        lags_sequence=[0],  # the default, 1..7, hides the last observed value from the encoder
        scaling=False,  # values are normalised once, over the training rows
        num_time_features=TIME_FEATURES,
        distribution_output="normal",  # only its mean is used
        d_model=d_model,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_ffn_dim=ffn,
        decoder_ffn_dim=ffn,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0,
        autocorrelation_factor=1,
        moving_average=moving_average,
    )


def build_model(config: AutoformerConfig, mend: bool = True) -> AutoformerForPrediction:
    """Returns an untrained model in float32; `mend=False` keeps transformers' attention with its two faults.

    The mean head starts as the identity on the seven channels, so the model starts from its own decomposition
    instead of noise. The head of the standard deviation takes no part in the loss and is frozen.
    """
    model = AutoformerForPrediction(config)
    heads: Any = model.parameter_projection.proj
    mean_head, deviation_head = heads
    with torch.no_grad():
        mean_head.weight.copy_(torch.eye(*mean_head.weight.shape))
        mean_head.bias.zero_()
    deviation_head.requires_grad_(False)
    speed_up_decomposition(model)
    if mend:
        mend_attention(model)
    return model


def predicted_mean(outputs: Any) -> Tensor:
    """Returns the forecast, (batch, horizon, channels), in normalised units."""
    return outputs.params[0] * outputs.scale + outputs.loc


def mse_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean squared error for `Trainer(compute_loss_func=...)`.

    With gradient accumulation the Trainer passes the number of target values of all micro-batches of one step and
    divides by nothing itself: the sum over this micro-batch must be divided by that number.
    """
    squares = (predicted_mean(outputs) - labels).square()
    return squares.mean() if num_items_in_batch is None else squares.sum() / num_items_in_batch


def keep_forecast(logits: Any, labels: Tensor) -> Tensor:
    """For `preprocess_logits_for_metrics`: keeps the forecast of all outputs (encoder states, scale, ...).

    `logits` are the model's outputs without the loss, as a tuple. `scaling=False` makes loc 0 and scale 1, so the
    first distribution parameter is the forecast.
    """
    params = next(item for item in logits if isinstance(item, (tuple, list)))
    return params[0]
