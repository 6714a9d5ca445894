"""Two predictors without parameters: what a trained model has to beat."""

import torch
from datasets import Dataset
from tqdm.auto import tqdm


def baseline_errors(windows: Dataset, batch_size: int = 1024) -> dict[str, dict[str, float]]:
    """Returns {"context mean" | "persistence": {"mse", "mae"}} over all elements of all windows, normalised units.

    Context mean forecasts the mean of the past values, persistence repeats the last one; per channel.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for start in tqdm(range(0, len(windows), batch_size), desc="trivial predictors"):
        batch = windows[start : start + batch_size]
        past, future = batch["past_values"].double(), batch["future_values"].double()
        forecasts = {"context mean": past.mean(dim=1, keepdim=True), "persistence": past[:, -1:]}
        for name, forecast in forecasts.items():
            error = forecast - future
            sums[name] = sums.get(name, 0.0) + torch.stack([error.square().sum(), error.abs().sum()])
        count += future.numel()
    return {name: dict(zip(("mse", "mae"), (total / count).tolist(), strict=True)) for name, total in sums.items()}
