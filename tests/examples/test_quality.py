"""examples/quality: every method trains, a sweep goes on where it stopped."""

import io
import json
import random

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "quality"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Words of a small vocabulary in random order, and pictures of noise."""
    folder = tmp_path_factory.mktemp("data")
    words = "to be or not that is the question whether tis nobler in the mind".split()
    (folder / "tinyshakespeare").mkdir()
    (folder / "tinyshakespeare" / "input.txt").write_text(" ".join(random.Random(0).choices(words, k=4000)))
    (folder / "cifar10-jpeg").mkdir()
    for name in ("train", "test"):
        rows = [{"img": {"bytes": picture(seed)}, "label": seed % 10} for seed in range(60)]
        parquet.write_table(arrow.Table.from_pylist(rows), folder / "cifar10-jpeg" / f"{name}.parquet")
    return folder


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


def sweep(data, output, *arguments):
    """What a sweep of a tiny model prints, and its results by method."""
    flags = ("--size=tiny", "--steps=20", "--rates=0.02", "--seeds=0", "--data", data, "--output", output)
    lines = python(FOLDER, "sweep.py", *flags, *arguments).splitlines()
    results = [json.loads(path.read_text()) for path in output.glob("*/*.json")]
    return lines, {found["method"]: found for found in results}


def test_a_sweep_runs_every_method_once_and_its_figures_add_up(data, tmp_path):
    methods = ("dense", "oialr_size", "oialr_longer", "oialr_longer_then_sigma", "oialr_sigma", "low_rank")
    lines, results = sweep(data, tmp_path, "--methods", *methods)
    assert len(lines) == 6
    assert sweep(data, tmp_path, "--methods", *methods)[0] == []  # all there
    assert len(results) == 6
    dense, longer, both = (results[name] for name in ("dense", "oialr_longer", "low_rank"))
    assert 0.9 * both["held"] < results["oialr_size"]["held"] <= longer["held"] == both["held"] < dense["held"]
    assert longer["trained_in_second_half"] < both["trained_in_second_half"]
    assert longer["optimizer_values"] < both["optimizer_values"] < dense["optimizer_values"]
    assert all(found["validation"] < 3.3 for found in results.values())  # log of 26 letters and a blank


def test_the_peers_train_by_adamw_and_hold_what_they_say(data, tmp_path):
    methods = ("dense", "low_rank", "low_rank_late", "low_rank_frobenius", "relora", "merged_lora")
    _, results = sweep(data, tmp_path, "--optimizer=adamw", "--methods", *methods)
    held = {name: found["held"] for name, found in results.items()}
    assert held["low_rank"] == held["low_rank_frobenius"] < held["dense"] < held["relora"] == held["merged_lora"]
    assert held["low_rank_late"] == held["low_rank"]
    assert results["low_rank_late"]["trained_at_once"] == held["dense"]  # at first
    assert results["relora"]["trained_in_second_half"] == results["low_rank"]["trained_in_second_half"]
    assert len({found["validation"] for found in results.values()}) == 6  # no two are the same method
    assert all(found["validation"] < 3.3 for found in results.values())


def test_galore_keeps_fewer_moments(data, tmp_path):
    pytest.importorskip("galore_torch")
    _, results = sweep(data, tmp_path, "--optimizer=adamw", "--methods", "dense", "galore")
    dense, galore = results["dense"], results["galore"]
    assert galore["held"] == dense["held"]
    assert galore["optimizer_values"] < dense["optimizer_values"]


def test_pictures_are_told_apart_by_the_same_methods(data, tmp_path):
    _, results = sweep(data, tmp_path, "--task=pictures", "--methods", "dense", "oialr_longer", "low_rank")
    dense, longer, both = (results[name] for name in ("dense", "oialr_longer", "low_rank"))
    assert longer["held"] == both["held"] < dense["held"]
    assert all(0 <= found["test_accuracy"] <= 1 for found in results.values())


def test_muon_does_not_notice_an_update_and_adamw_without_its_moments_does(data, tmp_path):
    output = tmp_path / "spikes.json"
    python(FOLDER, "spikes.py", "--data", data, "--size=tiny", "--steps=120", "--output", output)
    changes = {}
    for case in json.loads(output.read_text())["cases"]:
        largest = max(abs(change) for some in case["changes"] for change in some)
        changes[case["optimizer"], case["moments"], case["bases"]] = largest
    assert len(changes) == 5
    assert changes["muon", "rotate", "frozen"] < 1e-4
    assert changes["muon", "rotate", "longer"] < 1e-4
    assert changes["adamw", "rotate", "longer"] < changes["adamw", "reset", "longer"]


def test_steps_are_timed_in_alternation(data, tmp_path):
    output = tmp_path / "step_time.json"
    python(FOLDER, "step_time.py", "--data", data, "--size=tiny", "--rounds=2", "--output", output)
    assert set(json.loads(output.read_text())["optimizers"]) == {"muon", "adamw"}
