"""examples/forecast: least squares, sizes, and a tiny comparison of all methods that goes on where it stopped."""

import json

import pytest

from tests.helpers.examples import ROOT, python, refused


FOLDER = ROOT / "examples" / "forecast"
PATHS = f"import sys; sys.path += [{str(ROOT / 'examples' / 'quality')!r}, {str(ROOT / 'examples' / 'autoformer')!r}];"


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A daily cycle and noise, in ETT's columns."""
    file = tmp_path_factory.mktemp("data") / "cycle.csv"
    code = "from data import synthetic_series; synthetic_series(700).to_pandas().to_csv(sys.argv[1], index=False)"
    python(FOLDER, "-c", PATHS + code, file)
    return file


def test_least_squares_finds_a_series_that_a_linear_map_gives(tmp_path):
    code = """
import torch
from linear import forecaster, moments
class Windows(list):
    def __len__(self): return 64
    def __getitem__(self, part):
        start = torch.arange(64)[part, None, None] + torch.arange(30)[:, None] + 7 * torch.arange(2)
        wave = torch.sin(start / 3.0)
        return {"past_values": wave[:, :20], "future_values": wave[:, 20:]}
windows = Windows()
forecast = forecaster(*moments(windows), 1e-6)
batch = windows[:8]
print(float((forecast(batch["past_values"]) - batch["future_values"]).abs().max()))
"""
    assert float(python(FOLDER, "-c", PATHS + code)) < 1e-2


@pytest.mark.parametrize("model", ["patchtst", "patchtsmixer"])
def test_plain_low_rank_holds_what_is_asked(model):
    code = f"""
from models import make_model
from sizes import values_of
from training import Plan, low_rank
plan = Plan("{model}", 64, 32, 1, 1, 0.4, 1)
dense = make_model("{model}", 64, 32)
values = values_of(dense)
print(values_of(low_rank(plan, dense)[0]) / values)
"""
    assert 0.3 < float(python(FOLDER, "-c", PATHS + code)) <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("model", ["patchtst", "patchtsmixer"])
def test_a_comparison_goes_on_where_it_stopped(model, series, tmp_path):
    output = tmp_path / model / "cycle_16.json"
    small = ["--context", 64, "--horizon", 16, "--steps", 30, "--batch", 4, "--share", 0.6, "--validated", 10]
    given = ["run.py", "--data", series, "--model", model, *small, "--rates", 1e-3, 2e-3, "--output", output]
    python(FOLDER, *given, "--seeds", 0)
    first = json.loads(output.read_text())["runs"]
    assert [run["method"] for run in first] == 2 * ["dense", "longer", "frozen", "low rank", "longer plain"]
    python(FOLDER, *given, "--seeds", 0, 1)
    record = json.loads(output.read_text())
    assert record["runs"][:10] == first
    assert [run["seed"] for run in record["runs"][10:]] == 5 * [1]
    assert set(record["trivial"]) == {"linear map", "context mean", "persistence"}
    assert all(run["held_share"] <= 0.6 for run in record["runs"] if run["method"] != "dense")
    assert "has runs of another plan, with {'batch': 4}" in refused(FOLDER, *given, "--batch", 4000)
    fresh = tmp_path / "fresh.json"  # the last `--output` counts
    assert "batch: at most the" in refused(FOLDER, *given, "--batch", 4000, "--output", fresh)
    (other := tmp_path / "other.csv").write_bytes(series.read_bytes())
    assert "has runs on cycle, not on other" in refused(FOLDER, *given, "--data", other)


def test_a_rate_that_diverged_is_not_chosen():
    code = """
from run import best_rate
from forecast_card import chosen_runs
found = {8e-3: float("nan"), 1e-3: 0.3}
runs = [{"method": "dense", "seed": 0, "rate": rate, "validation": value} for rate, value in found.items()]
print(best_rate(runs, "dense"), chosen_runs({"runs": runs}, "dense")[0]["rate"])
"""
    assert python(FOLDER, "-c", code).split() == ["0.001", "0.001"]
