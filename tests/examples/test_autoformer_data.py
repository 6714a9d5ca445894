"""Protocol of the example's data and its guards: every bad input is refused once, with the way out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from baselines import baseline_errors
from data import CHANNELS, load_series, split_borders, synthetic_series
from settings import Settings
from windows import make_splits


def table(rows: int = 600) -> pd.DataFrame:
    return synthetic_series(rows).to_pandas()


def load(frame: pd.DataFrame, folder: Path) -> object:
    frame.to_csv(folder / "series.csv.gz", index=False)
    return load_series(str(folder / "series.csv.gz"))


def broken(change: str) -> pd.DataFrame:
    frame = table()
    if change == "missing column":
        return frame.drop(columns="OT")
    if change == "nan":
        frame.loc[[7, 9], "MULL"] = np.nan
    elif change == "inf":
        frame.loc[3, "OT"] = np.inf
    elif change == "text":
        frame["HULL"] = ["many", *["1.0"] * (len(frame) - 1)]
    elif change == "no date":
        frame["date"] = ["soon"] * len(frame)
    elif change == "unsorted":
        frame = frame.iloc[[0, 2, 1, *range(3, len(frame))]]
    elif change == "duplicate":
        frame = frame.iloc[[0, 1, 1, *range(2, len(frame))]]
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing column", r"\['OT'\] missing"),
        ("nan", "MULL: all values must be finite numbers, row 7"),
        ("inf", "OT: all values must be finite numbers, row 3"),
        ("text", "HULL: all values must be finite numbers, row 0 is 'many'"),
        ("no date", "date: every row must be a date"),
        ("unsorted", "date: must rise from row to row, row 2"),
        ("duplicate", "date: must rise from row to row, row 2"),
    ],
)
def test_bad_files_are_refused(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(broken(change), tmp_path)


def test_a_missing_file_is_not_taken_for_a_hub_dataset() -> None:
    with pytest.raises(ValueError, match="the file must exist"):
        load_series("absent.csv.gz")


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"context": 96, "horizon": 96, "label_length": 0}, "label_length: must lie between 1 and context"),
        ({"context": 96, "horizon": 96, "label_length": 97}, "label_length: must lie between 1 and context"),
        ({"context": 96, "horizon": 0}, "horizon: at least 1"),
        ({"context": 1, "horizon": 1}, "context: at least 2"),
        ({"context": 96, "horizon": 720}, "train split must hold context"),
        ({"context": 96, "horizon": 200}, "validation split must hold context"),
    ],
)
def test_bad_lengths_are_refused(lengths: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_splits(synthetic_series(600), **lengths)


def test_a_constant_channel_is_refused(tmp_path: Path) -> None:
    frame = table()
    frame["LUFL"] = 1.0
    with pytest.raises(ValueError, match="LUFL: must vary"):
        make_splits(load(frame, tmp_path), 24, 24, 12)


@pytest.mark.parametrize(
    ("rows", "minutes", "name", "ends"),
    [
        (69680, 15.0, "ETTm", [34560, 46080, 57600]),
        (17420, 60.0, "ETTh", [8640, 11520, 14400]),
        (57599, 15.0, "60/20/20", [34559, 46079, 57599]),
        (1000, 30.0, "60/20/20", [600, 800, 1000]),
    ],
)
def test_borders_follow_the_protocol(rows: int, minutes: float, name: str, ends: list[int]) -> None:
    got, borders = split_borders(rows, minutes, context=96)
    assert got == name
    assert [end for _, end in borders] == ends
    assert [begin for begin, _ in borders] == [0, ends[0] - 96, ends[1] - 96]


def test_windows_are_slices_of_the_normalised_series() -> None:
    frame, splits = table(), make_splits(synthetic_series(600), context=24, horizon=12, label_length=12)
    raw = frame[CHANNELS].to_numpy()
    normalised = (raw - raw[:360].mean(0)) / raw[:360].std(0)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [360 - 35, 120 - 11, 120 - 11]
    first, last = splits.test[0], splits.test[len(splits.test) - 1]
    np.testing.assert_allclose(first["past_values"], normalised[480 - 24 : 480], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first["labels"], normalised[480:492], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last["future_values"], normalised[-12:], rtol=1e-5, atol=1e-6)
    shapes = {name: tuple(value.shape) for name, value in first.items()}
    assert shapes == {
        "past_values": (24, 7),
        "past_time_features": (24, 5),
        "past_observed_mask": (24, 7),
        "future_values": (12, 7),
        "future_time_features": (12, 5),
        "labels": (12, 7),
    }


def test_time_features_lie_in_their_range_and_follow_the_calendar() -> None:
    splits = make_splits(synthetic_series(600), context=24, horizon=12, label_length=12)
    features = splits.train[:]["past_time_features"]
    assert features.min() >= -0.5
    assert features.max() <= 0.5
    friday_july_first_midnight = [-0.5, -0.5, 4 / 6 - 0.5, -0.5, 182 / 365 - 0.5]
    np.testing.assert_allclose(features[0, 0], friday_july_first_midnight, atol=1e-6)


def test_the_synthetic_series_repeats_and_sizes_follow_the_data() -> None:
    assert table().equals(table())
    assert (Settings().d_model, Settings(data="x.csv").d_model, Settings(d_model=32).ffn) == (64, 128, 128)


def test_trivial_predictors_on_the_real_test_split(ett_file: Path) -> None:
    splits = make_splits(load_series(str(ett_file)), context=96, horizon=96, label_length=48)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [34369, 11425, 11425]
    errors = baseline_errors(splits.test)
    assert round(errors["context mean"]["mse"], 4) == 0.2294
    assert round(errors["persistence"]["mse"], 4) == 0.2665
