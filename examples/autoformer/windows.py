"""Train, validation and test windows over one array, by the protocol of the ETT benchmark."""

import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from data import CHANNELS, split_borders
from datasets import Dataset
from torch import Tensor


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Windows of the three splits, the statistics that normalised them, and the protocol's name.

    An item of `train`, `validation`, `test` is a dict of float32 tensors: past_values, past_observed_mask (context,
    7), past_time_features (context, 5), future_values, labels (horizon, 7), future_time_features (horizon, 5).
    `mean` and `std` (7,) are those of the training rows (population), in the units of the file.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    mean: np.ndarray
    std: np.ndarray
    protocol: str


class WindowReader:
    """The transform of a dataset of window starts: cuts the batch's windows out of the shared arrays.

    Args:
        values: (rows, 7) normalised float32; features: (rows, 5) float32.
    """

    def __init__(self, values: Tensor, features: Tensor, context: int, horizon: int) -> None:
        self.values, self.features = values, features
        self.context, self.length = context, context + horizon

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, Tensor]:
        rows = torch.tensor(batch["start"])[:, None] + torch.arange(self.length)
        values, features = self.values[rows], self.features[rows]
        past, future = values[:, : self.context], values[:, self.context :]
        return {
            "past_values": past,
            "past_time_features": features[:, : self.context],
            "past_observed_mask": torch.ones_like(past),
            "future_values": future,
            "future_time_features": features[:, self.context :],
            "labels": future,
        }


def time_features(dates: pd.DatetimeIndex) -> np.ndarray:
    """Returns (rows, 5) in [-0.5, 0.5]: minute of hour, hour of day, weekday, day of month, day of year."""
    parts = [
        dates.minute / 59,
        dates.hour / 23,
        dates.day_of_week / 6,
        (dates.day - 1) / 30,
        (dates.day_of_year - 1) / 365,
    ]
    return np.stack([np.asarray(part) for part in parts], axis=1).astype(np.float32) - np.float32(0.5)


def check_lengths(context: int, horizon: int, label_length: int) -> None:
    """Raises ValueError unless horizon >= 1 and 1 <= label_length <= context."""
    if context < 2:
        raise ValueError(f"context: at least 2 steps are needed, got {context}; the paper uses 96.")
    if horizon < 1:
        raise ValueError(f"horizon: at least 1 step is needed, got {horizon}; the paper uses 96 to 720.")
    if not 1 <= label_length <= context:
        raise ValueError(
            f"label_length: must lie between 1 and context ({context}), got {label_length}; try {context // 2}."
        )


def make_splits(series: Dataset, context: int = 96, horizon: int = 96, label_length: int = 48) -> Splits:
    """Returns normalised windows of `series` (from `load_series`) for the three splits.

    Rows: ETTm 34560/11520/11520 at 15 minutes, ETTh 8640/2880/2880 at one hour, else 60/20/20 % of the rows.

    Raises:
        ValueError: `check_lengths`, or a split is too short for a single window, or a channel is constant.
    """
    check_lengths(context, horizon, label_length)
    frame = series.with_format("pandas")[:]
    minutes = frame["date"].diff().median() / pd.Timedelta(minutes=1)
    protocol, borders = split_borders(len(frame), minutes, context)
    if protocol == "60/20/20" and minutes in (15.0, 60.0):
        logger.warning("%d rows are fewer than the 20 months of the ETT protocol: split 60/20/20 %%.", len(frame))
    _check_rows(len(frame), borders, context, horizon)
    raw = frame[CHANNELS].to_numpy(dtype=np.float64)
    mean, std = raw[slice(*borders[0])].mean(axis=0), raw[slice(*borders[0])].std(axis=0)
    if not std.all():
        name = CHANNELS[int(np.argmin(std))]
        raise ValueError(f"{name}: must vary over the training rows, its standard deviation is 0; use another series.")
    values = torch.from_numpy(((raw - mean) / std).astype(np.float32))
    features = torch.from_numpy(time_features(pd.DatetimeIndex(frame["date"])))
    reader = WindowReader(values, features, context, horizon)
    datasets = [
        Dataset.from_dict({"start": range(begin, end - context - horizon + 1)}).with_transform(reader)
        for begin, end in borders
    ]
    return Splits(*datasets, mean=mean, std=std, protocol=protocol)


def _check_rows(rows: int, borders: list[tuple[int, int]], context: int, horizon: int) -> None:
    names = ("train", "validation", "test")
    for name, (begin, end) in zip(names, borders, strict=True):
        if begin < 0 or end - begin < context + horizon:
            raise ValueError(
                f"data: the {name} split must hold context + horizon = {context + horizon} rows, {rows} rows in all "
                f"give it {max(0, end - max(0, begin))}; use a longer series or a shorter horizon ({horizon})."
            )
