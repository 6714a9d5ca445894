"""examples/tuning: a search on disk goes on, its comparison is written, and the README is what the results give."""

import json
import random
from pathlib import Path

import pytest

from tests.helpers.examples import ROOT, python


FOLDER = ROOT / "examples" / "tuning"


def test_the_readme_is_what_the_results_give() -> None:
    assert (
        python(FOLDER, "-c", "import sys, table; sys.stdout.write(table.render())")
        == (FOLDER / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_search_goes_on_and_is_compared(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    text, out = tmp_path / "input.txt", tmp_path / "out"
    text.write_text("".join(random.Random(0).choices("abcdefgh ", k=200_000)))
    for trials in (1, 3):
        python(FOLDER, "run.py", "--text", text, "--trials", trials, "--steps", 20, "--seeds", 2, "--output", out)
        found = json.loads((out / "results.json").read_text())
        assert sum(found["trials"].values()) == trials
    assert len(found["tuned"]["test"]) == len(found["default"]["validation"]) == 2
    assert found["hardware"]
