"""examples/compression: every method ends at the size."""

import json

import pytest

from tests.helpers.examples import ROOT, data_with, python


FOLDER = ROOT / "examples" / "compression"


@pytest.mark.slow
def test_every_method_compresses_and_trains_on(tmp_path):
    data = data_with("tinyshakespeare")
    output = tmp_path / "found.json"
    steps = ["--dense-steps", 4, "--steps", 20, "--rates", 1e-3, "--shares", 0.4]
    python(FOLDER, "run.py", "--data", data, "--task", "characters", *steps, "--output", output)
    runs = json.loads(output.read_text())["runs"]
    assert [run["method"] for run in runs] == ["dense", "SVD", "SVD by activations", "OIALR", "OIALR, longer"]
    assert all(0.38 < run["held"] <= 0.4 for run in runs[1:])
