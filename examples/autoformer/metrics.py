"""The errors of the ETT benchmark as a metric of `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction


BATCH = 256  # windows that the metric takes at a time


class ForecastErrors(evaluate.Metric):
    """Mean squared and mean absolute error over all elements, for forecasts as rows of float32.

    The Hub's `mse` would be downloaded, and its scikit-learn keeps a mean for every column of 5,040.
    """

    def _info(self) -> evaluate.MetricInfo:
        rows = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Mean squared and mean absolute error of forecasts, in units of the values.",
            citation="",
            inputs_description="predictions, references: (windows, horizon * channels).",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, float]:
        error = np.asarray(predictions, dtype=np.float64) - np.asarray(references)
        return {"mse": float(np.mean(error**2)), "mae": float(np.mean(np.abs(error)))}


def forecast_errors(prediction: EvalPrediction) -> dict[str, float]:
    """Returns mean squared and mean absolute error over all elements, in normalised units, for `compute_metrics`."""
    metric = ForecastErrors(keep_in_memory=True)
    forecasts, targets = (np.asarray(part) for part in (prediction.predictions, prediction.label_ids))
    for begin in range(0, len(forecasts), BATCH):
        rows = (part[begin : begin + BATCH].reshape(-1, part[0].size) for part in (forecasts, targets))
        metric.add_batch(**dict(zip(("predictions", "references"), rows, strict=True)))
    errors: Any = metric.compute()
    return errors
