"""Two predictors without parameters, what a trained model has to beat, and the errors of any forecaster."""

from collections.abc import Callable, Mapping

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm


Forecaster = Callable[[Tensor], Tensor]  # past values (windows, context, channels) to future ones


def baseline_errors(windows: Dataset) -> dict[str, dict[str, float]]:
    """Returns {"context mean" | "persistence": {"mse", "mae"}} over all elements of all windows, normalised units.

    Context mean forecasts the mean of the past values, persistence repeats the last one; per channel.
    """
    trivial: dict[str, Forecaster] = {
        "context mean": lambda past: past.double().mean(dim=1, keepdim=True),
        "persistence": lambda past: past[:, -1:],
    }
    return errors_of(trivial, windows)


@torch.no_grad()
def errors_of(
    forecasters: Mapping[str, Forecaster], windows: Dataset, batch_size: int = 1024
) -> dict[str, dict[str, float]]:
    """Returns {name: {"mse", "mae"}} of each forecaster over all elements of all windows, in their units."""
    sums: dict[str, Tensor] = {}
    count = 0
    for start in tqdm(range(0, len(windows), batch_size), desc="forecasts", leave=False, disable=None):
        batch = windows[start : start + batch_size]
        past, future = batch["past_values"], batch["future_values"].double()
        for name, forecast in forecasters.items():
            error = forecast(past).double() - future
            sums[name] = sums.get(name, 0.0) + torch.stack([error.square().sum(), error.abs().sum()])
        count += future.numel()
    return {name: dict(zip(("mse", "mae"), (total / count).tolist(), strict=True)) for name, total in sums.items()}
