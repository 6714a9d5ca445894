"""examples/delay: a fixed share and "auto" train to the end, and what was run is not run again."""

import json

import pytest

from tests.helpers.examples import ROOT, data_with, python


FOLDER = ROOT / "examples" / "delay"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["characters", "pictures"])
def test_every_delay_leaves_the_full_rank_phase(task, tmp_path):
    data = data_with("tinyshakespeare", "cifar10-jpeg")
    arguments = ["run.py", "--data", data, "--task", task, "--steps", 20, "--output", tmp_path]
    python(FOLDER, *arguments, "--delays", "0.3", "auto")
    found = {path.name.split("_")[2]: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found["0.3"]["left"].values()) == {6}
    assert found["0.3"]["left"].keys() == found["auto"]["left"].keys()
    assert max(found["auto"]["left"].values()) <= 10
    assert python(FOLDER, *arguments, "--delays", "0.3", "auto") == ""
