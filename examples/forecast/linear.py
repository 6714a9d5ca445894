"""The linear map of the context that least squares gives: what a network has to be better than."""

from __future__ import annotations

from typing import Any

import torch
from baselines import Forecaster, errors_of
from datasets import Dataset
from torch import Tensor


RIDGES = tuple(10.0**power for power in range(-1, 5))


def linear_errors(train: Dataset, validation: Dataset, test: Dataset) -> dict[str, float]:
    """Returns {"mse", "mae", "ridge"} on test of one map for all channels; validation chooses the ridge."""
    gram, cross = moments(train)
    maps = {ridge: forecaster(gram, cross, ridge) for ridge in RIDGES}
    found = errors_of({str(ridge): forecast for ridge, forecast in maps.items()}, validation)
    ridge = min(RIDGES, key=lambda ridge: found[str(ridge)]["mse"])
    return {**errors_of({"linear": maps[ridge]}, test)["linear"], "ridge": ridge}


def moments(windows: Dataset, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Sums of x xᵀ and x yᵀ over windows and channels, less the last value: x (context), y (horizon), in float64."""
    gram: Any = 0.0
    cross: Any = 0.0
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        last = batch["past_values"][:, -1:]
        x, y = ((batch[name] - last).mT.flatten(0, 1) for name in ("past_values", "future_values"))
        gram, cross = gram + (x.mT @ x).double(), cross + (x.mT @ y).double()
    return gram, cross


def forecaster(gram: Tensor, cross: Tensor, ridge: float) -> Forecaster:
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), cross).float()

    def forecast(past: Tensor) -> Tensor:
        last = past[:, -1:]
        return ((past - last).mT @ weight).mT + last

    return forecast
