"""The example's model, loss and metrics, and both methods through the Trainer on a tiny series."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from decomposition import MatrixDecomposition
from metrics import forecast_errors
from model import KEPT_DENSE, build_config, build_model, keep_forecast, mse_loss, predicted_mean
from settings import Settings
from torch import Tensor
from train import train_one
from transformers import AutoformerForPrediction, EvalPrediction
from transformers.models.autoformer.modeling_autoformer import AutoformerSeriesDecompositionLayer
from windows import make_splits


TINY = {"horizon": 8, "context": 16, "label_length": 8, "d_model": 16, "heads": 2, "ffn": 32, "moving_average": 5}


def tiny_model() -> AutoformerForPrediction:
    torch.manual_seed(0)
    return build_model(build_config(**TINY)).eval()


def batch(size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"past_values": (16, 7), "past_time_features": (16, 5), "future_values": (8, 7)}
    tensors = {name: torch.randn(size, *shape, generator=generator) for name, shape in shapes.items()}
    return {**tensors, "future_time_features": torch.zeros(size, 8, 5), "past_observed_mask": torch.ones(size, 16, 7)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"moving_average": 24}, "moving_average: must be odd"), ({"d_model": 100}, "d_model: must be a multiple")],
)
def test_bad_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(**sizes)


@pytest.mark.parametrize(("length", "window"), [(16, 5), (16, 1), (4, 9), (150, 25), (64, 25), (65, 3)])
def test_fast_decomposition_equals_transformers(length: int, window: int) -> None:
    layer = AutoformerSeriesDecompositionLayer(SimpleNamespace(moving_average=window))
    x = torch.randn(3, length, 6, requires_grad=True)
    weights = torch.randn(2, 3, length, 6)  # a gradient of its own for each output

    def outputs_and_gradient() -> tuple[Tensor, Tensor, Tensor]:
        seasonal, trend = layer(x)
        (gradient,) = torch.autograd.grad((seasonal * weights[0] + trend * weights[1]).sum(), x)
        return seasonal, trend, gradient

    expected = outputs_and_gradient()
    layer.__class__ = MatrixDecomposition
    torch.testing.assert_close(outputs_and_gradient(), expected, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(outputs_and_gradient()[2], expected[2], atol=0.1, rtol=0.1)


def test_a_forecast_depends_on_the_last_value_and_not_on_the_future_or_the_batch() -> None:
    model, inputs = tiny_model(), batch()
    forecast = predicted_mean(model(**inputs))
    assert forecast.shape == (4, 8, 7)
    blind = predicted_mean(model(**{**inputs, "future_values": torch.zeros(4, 8, 7)}))
    torch.testing.assert_close(forecast, blind)
    alone = predicted_mean(model(**{name: value[2:3] for name, value in inputs.items()}))
    torch.testing.assert_close(forecast[2:3], alone, atol=1e-5, rtol=1e-5)
    inputs["past_values"][:, -1] += 1.0
    assert (predicted_mean(model(**inputs)) - forecast).abs().max() > 1e-3


def test_the_loss_adds_up_over_micro_batches() -> None:
    outputs = SimpleNamespace(params=(torch.randn(4, 8, 7),), loc=torch.zeros(4, 1, 7), scale=torch.ones(4, 1, 7))
    labels = torch.randn(4, 8, 7)
    whole = mse_loss(outputs, labels)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        half = SimpleNamespace(params=(outputs.params[0][part],), loc=outputs.loc[part], scale=outputs.scale[part])
        halves.append(mse_loss(half, labels[part], num_items_in_batch=labels.numel()))
    torch.testing.assert_close(sum(halves), whole)


def test_metrics_see_the_forecast_only() -> None:
    outputs, labels = tiny_model()(**batch()), batch()["future_values"]
    kept = keep_forecast(outputs.to_tuple()[1:], labels)
    torch.testing.assert_close(kept, predicted_mean(outputs))
    errors = forecast_errors(EvalPrediction(np.full((2, 8, 7), 3.0), np.ones((2, 8, 7))))
    assert errors == {"mse": 4.0, "mae": 2.0}


def test_errors_are_those_of_all_windows() -> None:
    generator = np.random.default_rng(0)
    forecasts, targets = generator.normal(size=(2, 700, 8, 7)).astype(np.float32)  # more than the metric takes at once
    error = forecasts.astype(np.float64) - targets
    expected = {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}
    assert forecast_errors(EvalPrediction(forecasts, targets)) == expected


@pytest.mark.parametrize("method", ["dense", "oialr"])
def test_both_methods_train_and_leave_a_complete_record(method: str, tmp_path: Path) -> None:
    from data import synthetic_series

    schedule = {"epochs": 2, "max_steps": 12, "delay": 4, "update_interval": 2, "target_size": 0.6, "batch_size": 8}
    settings = Settings(**TINY, **schedule, output=str(tmp_path))
    record = train_one(method, settings, make_splits(synthetic_series(200), 16, 8, 8))
    assert record == json.loads(json.dumps(record))
    assert record["steps"] == 12
    assert record["compressed_bytes"] > 0
    assert record["trainable_parameters"] < record["parameters_held"]
    if method == "oialr":
        assert len(record["ranks"]) == 22
        assert min(record["ranks"].values()) < 16
        assert record["trainable_percent"] < 100
        assert len((tmp_path / "oialr" / "trace.jsonl").read_text().splitlines()) == 5
    else:
        assert record["trainable_percent"] == 100


def test_the_named_heads_are_the_skinny_layers() -> None:
    import re

    layers = [n for n, m in tiny_model().named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv1d))]
    assert sum(re.fullmatch(KEPT_DENSE, name) is None for name in layers) == 22
    assert len(layers) == 22 + 6


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method: must be one of"):
        train_one("lora", Settings(), None)
