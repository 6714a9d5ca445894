"""examples/finetune: every method trains on a tiny model."""

import json

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "finetune"


@pytest.mark.slow
def test_every_method_is_run_at_the_rate_that_validation_prefers(tmp_path):
    folder = tmp_path / "tinyshakespeare"
    folder.mkdir()
    (folder / "input.txt").write_text("To be, or not to be: that is the question.\n" * 200)
    steps = ["--size", "tiny", "--base-steps", 5, "--steps", 5, "--rates", 1e-5, 1e-2, "--seeds", 0, 1]
    python(FOLDER, "run.py", "--data", tmp_path, *steps, "--output", tmp_path / "plays.json")
    record = json.loads((tmp_path / "plays.json").read_text())
    names = {run["method"] for run in record["runs"]}
    assert len(names) == 8
    for name in names:
        tried = {run["rate"]: run["validation"] for run in record["tried"] if run["method"] == name}
        runs = [run for run in record["runs"] if run["method"] == name]
        assert [run["seed"] for run in runs] == [0, 1]
        assert {run["rate"] for run in runs} == {min(tried, key=tried.get)}
        assert name == "full" or 0 < runs[0]["trainable"] < 10_000
    code = f"from tables import *; print(render(Path({str(tmp_path)!r})))"
    assert "DoRA" in python(FOLDER, "-c", code)
