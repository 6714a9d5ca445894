"""Reading a series with HF datasets and refusing, before any training, what could not be trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, load_dataset


CHANNELS = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
COLUMNS = ["date", *CHANNELS]


def load_series(data: str | None) -> Dataset:
    """Returns a multivariate series, one row per time step: `date` (timestamp, rising) and the seven ETT channels.

    Args:
        data: None for the built-in synthetic series (seeded), a path to a csv or csv.gz file, or the id of a
            dataset on the Hugging Face Hub whose `train` split holds the rows.

    Raises:
        ValueError: file absent, columns missing, dates unreadable or not strictly rising, values not finite.
    """
    if data is None:
        series = synthetic_series()
    elif Path(data).is_file():
        series = load_dataset("csv", data_files=data, split="train")
    elif data.endswith((".csv", ".csv.gz")):
        raise ValueError(
            f"data: the file must exist, got {data!r}; give its path, or nothing for the synthetic series."
        )
    else:
        series = load_dataset(data, split="train")
    missing = [name for name in COLUMNS if name not in series.column_names]
    if missing:
        raise ValueError(
            f"data: the columns {COLUMNS} are needed, {missing} missing among {series.column_names}; rename yours."
        )
    frame = pd.DataFrame(series.select_columns(COLUMNS).with_format("pandas")[:])
    frame["date"] = _checked_dates(frame["date"])
    for name in CHANNELS:
        frame[name] = _checked_values(name, frame[name])
    return Dataset.from_pandas(frame, preserve_index=False)


def _checked_dates(column: pd.Series) -> pd.Series:
    try:
        dates = pd.to_datetime(column)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"date: every row must be a date such as 2016-07-01 00:15:00, got {error}; correct the file."
        ) from error
    wrong = np.flatnonzero(~(dates.diff()[1:] > pd.Timedelta(0)))
    if wrong.size:
        row = int(wrong[0]) + 1
        raise ValueError(
            f"date: must rise from row to row, row {row} is {dates[row]} after {dates[row - 1]}; "
            "sort the file and drop duplicate rows."
        )
    return dates


def _checked_values(name: str, column: pd.Series) -> pd.Series:
    values = pd.Series(pd.to_numeric(column, errors="coerce")).astype(np.float64)
    wrong = np.flatnonzero(~np.isfinite(values.to_numpy()))
    if wrong.size:
        row = int(wrong[0])
        raise ValueError(
            f"{name}: all values must be finite numbers, row {row} is {column[row]!r}; fill the gap or cut the rows."
        )
    return values


def synthetic_series(rows: int = 3000, seed: int = 0) -> Dataset:
    """Returns a half-hourly series with daily and weekly cycles, a trend and autocorrelated noise, in ETT's columns.

    Each channel mixes the same parts differently, so there is something to learn across channels.
    """
    random = np.random.default_rng(seed)
    steps = np.arange(rows)[:, None]
    daily, weekly, phase = random.uniform(0.5, 2.0, (3, 1, len(CHANNELS)))
    noise = np.zeros((rows, len(CHANNELS)))
    shocks = random.normal(0.0, 0.3, noise.shape)
    for row in range(1, rows):
        noise[row] = 0.9 * noise[row - 1] + shocks[row]
    trend = random.normal(0.0, 1.0, (1, len(CHANNELS))) * steps / rows
    cycles = daily * np.sin(2 * np.pi * steps / 48 + phase) + weekly * np.sin(2 * np.pi * steps / 336)
    values = cycles + trend + noise
    frame = pd.DataFrame(values, columns=CHANNELS)
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq="30min"))
    return Dataset.from_pandas(frame, preserve_index=False)


def split_borders(rows: int, minutes: float, context: int) -> tuple[str, list[tuple[int, int]]]:
    """Returns the protocol's name and the row ranges of train, validation and test.

    Validation and test begin `context` rows early, so their first forecast starts right after the split before.

    Args:
        rows: number of rows of the series.
        minutes: time between two rows; 15 is read as ETTm, 60 as ETTh when there are rows enough.
    """
    month = {15.0: 30 * 24 * 4, 60.0: 30 * 24}.get(minutes)
    if month is not None and rows >= 20 * month:
        name, ends = {15.0: "ETTm", 60.0: "ETTh"}[minutes], [12 * month, 16 * month, 20 * month]
    else:
        name, ends = "60/20/20", [rows * 60 // 100, rows * 80 // 100, rows]
    return name, [(0, ends[0]), (ends[0] - context, ends[1]), (ends[1] - context, ends[2])]
