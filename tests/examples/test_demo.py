"""`make demo`: both methods, one screen, every file that it names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_the_files_that_it_names(tmp_path):
    command = [sys.executable, "examples/demo/run.py", "--epochs=0.3", "--output", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    dense, small = results["dense"], results["OIALR"]
    assert small["megabytes"] < 0.5 * dense["megabytes"]
    assert set(results["trivial"]) == {"the most frequent digit", "the nearest mean image"}
    assert results["trivial"]["the nearest mean image"] > 0.8
    screen = ended.stdout[ended.stdout.index("Handwritten digits") :]
    assert all(f"{run['test']:.1%}" in screen for run in (dense, small))
    assert f"{small['megabytes'] / dense['megabytes']:.2f}" in screen
    assert (tmp_path / "report.html").read_text().count("<svg") == 4  # too short for a logged loss
    assert (tmp_path / "demo.png").stat().st_size > 10_000
    assert (tmp_path / "oialr" / "model" / "model.safetensors").exists()
