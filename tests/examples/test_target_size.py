"""examples/target_size: every rule trains to the size."""

import json

import pytest

from tests.helpers.examples import ROOT, data_with, python


FOLDER = ROOT / "examples" / "target_size"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["characters", "pictures"])
def test_every_rule_ends_at_the_size(task, tmp_path):
    data = data_with("tinyshakespeare", "cifar10-jpeg")
    output = tmp_path / "found.json"
    python(FOLDER, "run.py", "--data", data, "--task", task, "--dense-steps", 4, "--steps", 20, "--output", output)
    runs = json.loads(output.read_text())["runs"]
    assert len(runs) == 5
    assert all(0.27 < found["held"] <= 0.3 for found in runs)
    assert len({str(found["ranks"]) for found in runs}) >= 3
