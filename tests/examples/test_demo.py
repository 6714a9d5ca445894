"""`make demo`: both methods, one screen, every file that it names."""

import json

import pytest

from tests.helpers.examples import ROOT, python


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_the_files_that_it_names(tmp_path):
    printed = python(ROOT, "examples/demo/run.py", "--epochs=0.3", "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    dense, small = results["dense"], results["OIALR"]
    assert small["megabytes"] < 0.5 * dense["megabytes"]
    assert set(results["trivial"]) == {"the most frequent digit", "the nearest mean image"}
    assert results["trivial"]["the nearest mean image"] > 0.8
    screen = printed[printed.index("Handwritten digits") :]
    assert all(f"{run['test']:.1%}" in screen for run in (dense, small))
    assert f"{small['megabytes'] / dense['megabytes']:.2f}" in screen
    assert (tmp_path / "report.html").read_text().count("<svg") == 5  # too short for a logged loss
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "oialr" / "model" / "model.safetensors").exists()
