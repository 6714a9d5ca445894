"""The example's commands, run as a user runs them, on small settings."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pandas
import pytest
from data import CHANNELS


EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "autoformer"
SMALL = ["--d_model", "16", "--max_steps", "24", "--delay", "10", "--update_interval", "3", "--target_size", "0.6"]


def run(script: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / script), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("run")
    result = run("run.py", folder, *SMALL, "--output", "out")
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def runs(folder: Path) -> dict[str, dict]:
    return {run["method"]: run for run in json.loads((folder / "results.json").read_text())["runs"]}


def test_one_run_compares_both_methods_and_the_trivial_predictors(comparison: tuple[Path, str]) -> None:
    folder, printed = comparison
    for row in ("dense", "oialr", "context mean", "persistence", "test MSE", "trainable"):
        assert row in printed
    records = runs(folder)
    assert records["oialr"]["trainable_parameters"] < records["dense"]["trainable_parameters"]
    assert records["oialr"]["steps"] == records["dense"]["steps"] == 24
    assert all(record["compressed_bytes"] > 0 and record["seconds_per_step"] > 0 for record in records.values())
    assert (folder / "ranks.png").stat().st_size > 5000
    assert len((folder / "oialr" / "trace.jsonl").read_text().splitlines()) == 5
    assert (folder / "oialr" / "adapter_model.safetensors").exists()
    assert (folder / "dense" / "model.safetensors").exists()


def test_a_later_run_keeps_what_the_folder_has_and_does_not_mix_settings(
    comparison: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(comparison[0], tmp_path / "out")
    before = runs(folder)
    result = run("run.py", tmp_path, *SMALL, "--methods", "dense", "--output", "out")
    assert result.returncode == 0, result.stderr
    after = runs(folder)
    assert after["oialr"] == before["oialr"]
    assert after["dense"]["test_mse"] == pytest.approx(before["dense"]["test_mse"])
    result = run("run.py", tmp_path, *SMALL, "--methods", "dense", "--output", "out", "--seed", "7")
    assert "has the results of other settings (seed: 2021 there, 7 now)" in result.stderr
    assert runs(folder) == after


def test_settings_that_do_not_go_together_end_before_the_dense_run(tmp_path: Path) -> None:
    for flags, said in (
        (("--layer_step", "0.5"), "`layer_step=0.5` has no effect with `target_size`"),
        (("--d_model", "16"), "below the floor of"),
    ):
        result = run("run.py", tmp_path, *flags, "--output", "out")
        assert said in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_input_ends_before_training_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "series.csv").write_text("date,HUFL\n2020-01-01 00:00:00,1.0\n")
    result = run("run.py", tmp_path, "--data", "series.csv", "--output", "out")
    assert result.returncode != 0
    assert "ValueError" in result.stderr
    assert "HULL" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_the_same(tmp_path: Path) -> None:
    # what is learnt from the waves of the first 360 hours makes the forecasts of the noise after them worse
    values = numpy.random.default_rng(0).normal(size=(600, len(CHANNELS)))
    values[:360] = numpy.sin(numpy.outer(numpy.arange(360), numpy.arange(2, 9)) / 5)
    hours = pandas.DataFrame(values, columns=CHANNELS)
    hours.insert(0, "date", pandas.date_range("2020-01-01", periods=600, freq="h"))
    hours.to_csv(tmp_path / "series.csv", index=False)
    sizes = ["--data", "series.csv", "--d_model", "16", "--horizon", "8", "--context", "16", "--label_length", "8"]
    ends = ["--learning_rate", "0.03", "--epochs", "9", "--patience", "2", "--delay", "5", "--update_interval", "7"]
    flags = [*sizes, *ends, "--target_size", "0.8", "--methods", "oialr"]
    assert (whole := run("run.py", tmp_path, *flags, "--output", "whole")).returncode == 0, whole.stderr
    command = [sys.executable, str(EXAMPLE / "run.py"), *flags, "--output", "cut"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    # two: the best and a later one, so that patience has begun
    while len(list((tmp_path / "cut" / "oialr").glob("checkpoint-*/trainer_state.json"))) < 2:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not runs(tmp_path / "cut")
    resumed = run("run.py", tmp_path, *flags, "--output", "cut", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    expected, found = runs(tmp_path / "whole")["oialr"], runs(tmp_path / "cut")["oialr"]
    assert expected["steps"] < 9 * (expected["steps"] // len(expected["validation_mse"]))  # patience ended it
    for name in ("validation_mse", "test_mse", "steps", "ranks", "trainable_parameters"):
        assert found[name] == expected[name]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_series_end_to_end(ett_file: Path, tmp_path: Path) -> None:
    flags = ["--data", str(ett_file), "--max_steps", "60", "--delay", "20", "--update_interval", "10"]
    result = run("run.py", tmp_path, *flags, "--output", "out")
    assert result.returncode == 0, result.stderr
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert records["trivial predictors"]["context mean"]["mse"] == pytest.approx(0.2294, abs=5e-5)
    assert all(run["test_mse"] < 0.4 for run in records["runs"])
