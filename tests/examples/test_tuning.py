"""examples/tuning: a search on disk goes on, its comparison is written, and the README is what the results give."""

import json
import random
from pathlib import Path

import pytest

from tests.helpers.examples import ROOT, python, refused


FOLDER = ROOT / "examples" / "tuning"


def test_the_readme_is_what_the_results_give() -> None:
    assert (
        python(FOLDER, "-c", "import sys, table; sys.stdout.write(table.render())")
        == (FOLDER / "README.md").read_text()
    )


@pytest.mark.slow
def test_a_search_goes_on_and_is_compared(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    text, out = tmp_path / "input.txt", tmp_path / "out"
    text.write_text("".join(random.Random(0).choices("abcdefgh ", k=200_000)))
    given = ["run.py", "--text", text, "--seeds", 2, "--output", out]
    for trials in (1, 3):
        python(FOLDER, *given, "--trials", trials, "--steps", 20)
        study = optuna.load_study(study_name="oialr", storage=f"sqlite:///{out}/study.db")
        study.ask()  # as one that was killed leaves it
        found = json.loads((out / "results.json").read_text())
        assert sum(found["trials"].values()) == trials
    assert len(found["tuned"]["test"]) == len(found["default"]["validation"]) == 2
    assert found["hardware"]
    assert len({trial.params["learning_rate"] for trial in study.trials if trial.params}) == 3
    assert "has trials of 20 steps, not 30" in refused(FOLDER, *given, "--trials", 4, "--steps", 30)
