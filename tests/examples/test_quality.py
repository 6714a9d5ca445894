"""examples/quality: every method trains, a sweep goes on where it stopped."""

import json
import random

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "quality"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Words of a small vocabulary in random order."""
    path = tmp_path_factory.mktemp("text") / "input.txt"
    words = "to be or not that is the question whether tis nobler in the mind".split()
    path.write_text(" ".join(random.Random(0).choices(words, k=4000)))
    return path


def test_a_sweep_runs_every_method_once_and_its_figures_add_up(text, tmp_path):
    arguments = (
        "sweep.py",
        "--text",
        text,
        "--size=tiny",
        "--steps=20",
        "--rates=0.02",
        "--seeds=0",
        "--output",
        tmp_path,
    )
    assert len(python(FOLDER, *arguments).splitlines()) == 5
    assert python(FOLDER, *arguments) == ""  # all there
    results = {(found := json.loads(path.read_text()))["method"]: found for path in tmp_path.glob("*.json")}
    assert len(results) == 5
    dense, longer, both = (results[name] for name in ("dense", "oialr_longer", "low_rank"))
    assert longer["held"] == both["held"] < dense["held"]
    assert longer["trained_in_second_half"] < both["trained_in_second_half"]
    assert all(found["validation"] < 3.3 for found in results.values())  # log of 26 letters and a blank
